// SPDX-License-Identifier: Apache-2.0
// java Watch.java DIRECTORY: prints what a WatchService reports of the directory.
import java.nio.file.*;

class Watch {
    public static void main(String[] words) throws Exception {
        WatchService service = FileSystems.getDefault().newWatchService();
        Path.of(words[0]).register(service, StandardWatchEventKinds.ENTRY_CREATE,
            StandardWatchEventKinds.ENTRY_DELETE, StandardWatchEventKinds.ENTRY_MODIFY);
        System.out.println("READY");
        for (;;) {
            WatchKey key = service.take();
            for (WatchEvent<?> event : key.pollEvents())
                System.out.println(event.kind() + " " + event.context());
            key.reset();
        }
    }
}
