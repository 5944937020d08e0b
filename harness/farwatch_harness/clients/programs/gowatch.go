// SPDX-License-Identifier: Apache-2.0

// gowatch DIRECTORY prints what Go's fsnotify reports of a directory and all below it.
package main

import (
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// add watches a directory and all below it.
func add(watcher *fsnotify.Watcher, directory string) {
	err := filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			err = watcher.Add(path)
		}
		return err
	})
	if err != nil {
		fmt.Println("error", err)
	}
}

func main() {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		log.Fatal(err)
	}
	add(watcher, os.Args[1])
	fmt.Println("READY")
	for {
		select {
		case event := <-watcher.Events:
			fmt.Println(event.Op, event.Name)
			if info, err := os.Lstat(event.Name); err == nil && info.IsDir() && event.Has(fsnotify.Create) {
				add(watcher, event.Name)
			}
		case err := <-watcher.Errors:
			fmt.Println("error", err)
		}
	}
}
