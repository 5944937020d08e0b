# SPDX-License-Identifier: Apache-2.0
"""The vhost-user back-end's state.

What each message of the front-end does to features, memory and rings.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from farwatchd.vhost_user.device_state import Direction, StateTransfer
from farwatchd.vhost_user.messages import Message, ProtocolError, encode_reply
from farwatchd.vhost_user.vring import RingMaker, Vring
from farwatchd.virtqueue import (
    DirtyLog,
    GuestMemory,
    Region,
    RingAddress,
    RingMemory,
    VirtqueueError,
)
from farwatchd.virtqueue.ring import MAX_RING_SIZE
from farwatchd.wire import vhost_user as wire
from farwatchd.wire.state import (
    NONE,
    ConnectionState,
    Descriptors,
    ReceivedDescriptors,
    RegionState,
    State,
    StateError,
)
from farwatchd.wire.vhost_user import (
    VHOST_F_LOG_ALL,
    VHOST_USER_F_PROTOCOL_FEATURES,
    FrontEndRequest,
    ProtocolFeature,
)
from farwatchd.wire.virtio import VirtioFeature

_log = logging.getLogger(__name__)

PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)
#: Memory slots announced: as many as other back-ends, enough for memory hotplug.
MAX_MEM_SLOTS = 509
_LOG_TOO_SMALL = "the log of dirty pages is too small for the guest's memory"
#: Messages whose descriptor is missing are ignored: the former descriptor keeps its meaning.
_IGNORED_WITHOUT_FD = (FrontEndRequest.SET_VRING_CALL, FrontEndRequest.SET_VRING_ERR)


class RequestError(Exception):
    """A message was understood and cannot be done.

    The front-end gets an error if it asked for an acknowledgement, and may send other messages.
    """


class DeviceModel(Protocol):
    """The device behind the rings, as the back-end sees it."""

    make_ring: RingMaker

    @property
    def features(self) -> int:
        """Feature bits offered."""

    @property
    def queue_count(self) -> int:
        """Number of queues."""

    @property
    def config_space(self) -> bytes | None:
        """The device's configuration space; None if the front-end has one itself."""

    @property
    def state_transfer(self) -> StateTransfer | None:
        """Transfers the state when the front-end migrates the guest; None: it cannot."""

    def ring_started(self, vring: Vring, features: int) -> None:
        """Serve ``vring`` from now on, with the acked ``features``.

        ``OSError`` when the event loop cannot wait for its kicks.
        """

    def ring_stopped(self, vring: Vring) -> None:
        """Stop serving ``vring`` until it is started again; takes a limited time."""

    def detach_memory(self) -> None:
        """Use no guest memory of requests in flight: some of it will be removed.

        Their replies use the memory that the rings have then.
        """

    def reset(self) -> None:
        """Forget the guest: it was reset, or the front-end has left. Takes a limited time."""


class Backend:
    """The state that one front-end's messages lead to. Starts and stops the rings of the device."""

    def __init__(self, device: DeviceModel) -> None:
        self._device = device
        self._features = 0
        self._protocol_features = ProtocolFeature(0)
        self._memory = GuestMemory()
        self._log: DirtyLog | None = None
        self._log_event_fd: int | None = None
        self._vrings = [Vring(index, device.make_ring) for index in range(device.queue_count)]
        self._paused: list[Vring] = []

    def handle(self, message: Message) -> bytes | None:
        """Do what ``message`` says; return the reply, if it has one.

        The descriptors of the message get an owner, or are closed.
        """
        try:
            if message.truncated:
                self._refuse_truncated(message)
                return None
            rule = self._check(message)
            reply = rule.handler(self, message)
        except (RequestError, OSError) as error:
            if not self._wants_ack(message):
                raise ProtocolError(f"{message.request.name}: {error}") from error
            # The text alone: the exception keeps a refused mapping alive as long as something keeps
            # the log record.
            _log.warning("front-end's %s refused: %s", message.request.name, str(error))
            return encode_reply(message.request, wire.number.pack(value=1))
        finally:
            message.close_fds()
        if reply is not None:
            return encode_reply(message.request, reply)
        return (
            encode_reply(message.request, wire.number.pack()) if self._wants_ack(message) else None
        )

    def close(self) -> None:
        """Reset the device, stop every ring, release memory and descriptors."""
        if self._device.state_transfer is not None:
            self._device.state_transfer.end()
        try:
            self._device.reset()
        finally:
            for vring in self._vrings:
                self._stop(vring)
                vring.close()
            self._memory = GuestMemory()
            self._use_log(None)
            self._use_log_event(None)

    def pause(self) -> None:
        """Stop the rings that run, until ``resume``."""
        self._paused = [vring for vring in self._vrings if vring.ring is not None]
        for vring in self._paused:
            self._stop(vring)

    def resume(self) -> None:
        """Start the rings that ``pause`` has stopped, here or in another process."""
        paused, self._paused = self._paused, []
        for vring in paused:
            try:
                self._update_ring_state(vring)
            except RequestError as error:
                _log.error("%s", error)

    def export_state(self, state: State, fds: Descriptors, sock: int) -> None:
        """Add features, memory and rings to a state; ``pause`` was called.

        ``sock`` is the connection's descriptor.
        """
        transfer = self._device.state_transfer
        if transfer is not None and transfer.active:
            raise StateError("the VMM is migrating the guest")
        log = self._log
        state.connection.append(
            ConnectionState(
                fds.add(sock),
                self._features,
                int(self._protocol_features),
                *((NONE, 0, 0) if log is None else (fds.add(log.fd), log.offset, log.size)),
                fds.add(self._log_event_fd),
            )
        )
        for region in self._memory.regions:
            # Each was mapped by a message, or of a state.
            assert region.file is not None
            state.regions.append(
                RegionState(
                    fds.add(region.file.fd),
                    region.file.offset,
                    region.guest_addr,
                    region.size,
                    region.user_addr,
                )
            )
        state.vrings += [vring.export_state(fds, vring in self._paused) for vring in self._vrings]

    def export_running(self, state: State, fds: Descriptors, sock: int) -> None:
        """Do the same while rings may run: where they are, the state does not say."""
        paused, self._paused = (
            self._paused,
            [each for each in self._vrings if each.ring is not None],
        )
        try:
            self.export_state(state, fds, sock)
        finally:
            self._paused = paused

    def restore_state(self, state: State, fds: ReceivedDescriptors) -> None:
        """Become the paused back-end of a state; ``StateError``."""
        (connection,) = state.connection
        self._features = connection.features
        self._protocol_features = ProtocolFeature(connection.protocol_features)
        if connection.features & ~self._features_offered:
            raise StateError("the guest uses features of the device that are not offered here")
        # As numbers: the complement of a flag has its known bits alone.
        if connection.protocol_features & ~int(self._offered_protocol_features):
            raise StateError("the front-end uses protocol features that are not offered here")
        try:
            self._memory = GuestMemory([_map_again(region, fds) for region in state.regions])
            self._restore_log(connection, fds)
        except ValueError as error:
            raise StateError(str(error)) from error
        if [each.queue for each in state.vrings] != list(range(len(self._vrings))):
            raise StateError(f"it has {len(state.vrings)} queues of {len(self._vrings)}")
        for vring, record in zip(self._vrings, state.vrings, strict=True):
            vring.restore_state(record, fds)
            if record.running:
                if not vring.ready:
                    raise StateError(f"queue {vring.index} runs without all that it needs")
                self._paused.append(vring)

    def _restore_log(self, connection: ConnectionState, fds: ReceivedDescriptors) -> None:
        self._use_log_event(fds.take_any(connection.log_event))
        fd = fds.take_any(connection.log)
        if fd is not None:
            try:
                self._use_log(DirtyLog(fd, connection.log_offset, connection.log_size))
            finally:
                os.close(fd)
        self._check_log(self._memory)
        if self._logs and self._log is not None:
            # A process that was killed may have written what it has not logged.
            self._log.mark_all(self._memory)

    def _refuse_truncated(self, message: Message) -> None:
        if message.request not in _IGNORED_WITHOUT_FD or self._wants_ack(message):
            raise RequestError("no descriptor is free; raise --rlimit-nofile")
        _log.error(
            "front-end's %s ignored: no descriptor is free; raise --rlimit-nofile",
            message.request.name,
        )

    @property
    def _features_offered(self) -> int:
        return self._device.features | VHOST_F_LOG_ALL

    @property
    def _offered_protocol_features(self) -> ProtocolFeature:
        features = PROTOCOL_FEATURES
        if self._device.config_space is not None:
            features |= ProtocolFeature.CONFIG
        if self._device.state_transfer is not None:
            features |= ProtocolFeature.DEVICE_STATE
        return features

    def _wants_ack(self, message: Message) -> bool:
        return message.need_reply and ProtocolFeature.REPLY_ACK in self._protocol_features

    def _check(self, message: Message) -> _Rule:
        rule = _RULES[message.request]
        name = message.request.name
        if rule.needs not in self._protocol_features:
            raise ProtocolError(f"{name} without having negotiated {rule.needs.name}")
        if rule.size is not None and len(message.payload) != rule.size:
            raise ProtocolError(f"{name} with {len(message.payload)} bytes, {rule.size} are right")
        if len(message.fds) > rule.max_fds:
            raise ProtocolError(
                f"{name} with {len(message.fds)} descriptors, at most {rule.max_fds} are right"
            )
        return rule

    # Features and settings

    def _get_features(self, _message: Message) -> bytes:
        """Return the feature bits (VHOST_USER_GET_FEATURES)."""
        return wire.number.pack(value=self._features_offered)

    def _set_features(self, message: Message) -> None:
        """Take the acked feature bits, among them whether writes are logged.

        Without protocol features rings start enabled (VHOST_USER_SET_FEATURES; "Ring states").
        """
        features = wire.number.unpack_from(message.payload).value
        surplus = features & ~self._features_offered
        if surplus:
            raise ProtocolError(
                f"SET_FEATURES acks feature bits that were not offered: {surplus:#x}"
            )
        changed = features ^ self._features
        if changed & ~VHOST_F_LOG_ALL and any(vring.ring is not None for vring in self._vrings):
            raise ProtocolError("SET_FEATURES changes the features while rings run")
        if features & VHOST_F_LOG_ALL and self._log is None:
            raise RequestError("writes cannot be logged: there is no log (SET_LOG_BASE)")
        self._features = features
        if changed & VHOST_F_LOG_ALL:
            _log.info(
                "writes into the guest's memory are %s",
                "logged: the VMM migrates the guest" if self._logs else "not logged any more",
            )
            self._restart_rings()
        if not features & VHOST_USER_F_PROTOCOL_FEATURES:
            for vring in self._vrings:
                vring.enabled = True
                self._update_ring_state(vring)

    def _get_protocol_features(self, _message: Message) -> bytes:
        """Return the protocol feature bits (VHOST_USER_GET_PROTOCOL_FEATURES)."""
        return wire.number.pack(value=int(self._offered_protocol_features))

    def _set_protocol_features(self, message: Message) -> None:
        """Take the acked protocol feature bits (VHOST_USER_SET_PROTOCOL_FEATURES)."""
        features = wire.number.unpack_from(message.payload).value
        surplus = features & ~int(self._offered_protocol_features)
        if surplus:
            raise ProtocolError(
                f"SET_PROTOCOL_FEATURES acks bits that were not offered: {surplus:#x}"
            )
        self._protocol_features = ProtocolFeature(features)

    def _set_owner(self, _message: Message) -> None:
        """Begin the session (VHOST_USER_SET_OWNER)."""
        _log.debug("front-end took ownership")

    def _get_queue_num(self, _message: Message) -> bytes:
        """Return the number of queues (VHOST_USER_GET_QUEUE_NUM; "Multiple queue support")."""
        return wire.number.pack(value=len(self._vrings))

    def _get_config(self, message: Message) -> bytes:
        """Return a part of the configuration space (VHOST_USER_GET_CONFIG).

        On error the payload has no bytes.
        """
        try:
            wanted = self._config_range(message)
        except RequestError as error:
            _log.warning("front-end's GET_CONFIG refused: %s", error)
            return b""
        space = (self._device.config_space or b"").ljust(wire.MAX_CONFIG_SIZE, b"\0")
        return (
            message.payload[: wire.config.size] + space[wanted.offset : wanted.offset + wanted.size]
        )

    def _set_config(self, message: Message) -> None:
        """Refuse to change the configuration space (VHOST_USER_SET_CONFIG)."""
        self._config_range(message)
        text = "the configuration space of a file system is read-only"
        if self._wants_ack(message):
            raise RequestError(text)
        _log.warning("front-end's SET_CONFIG ignored: %s", text)

    def _config_range(self, message: Message) -> Any:
        if len(message.payload) < wire.config.size:
            raise ProtocolError(f"{message.request.name} with {len(message.payload)} bytes")
        wanted = wire.config.unpack_from(message.payload)
        if len(message.payload) != wire.config.size + wanted.size:
            raise ProtocolError(
                f"{message.request.name} of {wanted.size} bytes in {len(message.payload)} bytes"
            )
        if wanted.offset + wanted.size > wire.MAX_CONFIG_SIZE:
            raise RequestError(f"no configuration space at {wanted.offset}, {wanted.size} bytes")
        return wanted

    def _reset_owner(self, _message: Message) -> None:
        """Disable all rings (VHOST_USER_RESET_OWNER, deprecated)."""
        # Only "disable all rings" is left of its meaning; front-ends that want a reset send
        # RESET_DEVICE.
        for vring in self._vrings:
            self._stop(vring)
            vring.enabled = False

    def _reset_device(self, _message: Message) -> None:
        """Disable all rings and reset the device (VHOST_USER_RESET_DEVICE)."""
        # Memory and protocol features belong to the connection and stay: QEMU does not send them
        # again.
        for vring in self._vrings:
            self._stop(vring)
            vring.set_kick(None)
            vring.reset()
        self._device.reset()

    def _forget_guest(self) -> None:
        for vring in self._vrings:
            vring.forget_guest()
        self._device.reset()

    # Memory

    def _set_mem_table(self, message: Message) -> None:
        """Replace the memory regions.

        Running rings go on in the new ones (VHOST_USER_SET_MEM_TABLE; "Memory regions
        description").
        """
        table, region = wire.memory_table, wire.memory_region
        if len(message.payload) < table.size:
            raise ProtocolError(f"SET_MEM_TABLE with {len(message.payload)} bytes")
        count = table.unpack_from(message.payload).regions
        if (
            count > wire.MAX_TABLE_REGIONS
            or len(message.payload) < table.size + count * region.size
        ):
            raise ProtocolError(f"SET_MEM_TABLE of {count} regions in {len(message.payload)} bytes")
        if len(message.fds) != count:
            raise ProtocolError(
                f"SET_MEM_TABLE of {count} regions with {len(message.fds)} descriptors"
            )
        wanted = [
            region.unpack_from(message.payload, table.size + i * region.size) for i in range(count)
        ]
        self._change_memory(
            lambda: [_map(fd, item) for fd, item in zip(message.fds, wanted, strict=True)]
        )

    def _get_max_mem_slots(self, _message: Message) -> bytes:
        """Return the number of memory slots (VHOST_USER_GET_MAX_MEM_SLOTS)."""
        return wire.number.pack(value=MAX_MEM_SLOTS)

    def _add_mem_reg(self, message: Message) -> None:
        """Add a memory region (VHOST_USER_ADD_MEM_REG)."""
        if len(message.fds) != 1:
            raise ProtocolError("ADD_MEM_REG without a descriptor")
        if len(self._memory.regions) >= MAX_MEM_SLOTS:
            raise RequestError(f"all {MAX_MEM_SLOTS} memory slots are taken")
        wanted = wire.single_region.unpack_from(message.payload)
        self._change_memory(lambda: [*self._memory.regions, _map(message.fds[0], wanted)])

    def _rem_mem_reg(self, message: Message) -> None:
        """Remove a memory region, which is not used after the reply (VHOST_USER_REM_MEM_REG)."""
        wanted = wire.single_region.unpack_from(message.payload)
        key = (wanted.guest_addr, wanted.size, wanted.user_addr)
        remaining = [r for r in self._memory.regions if (r.guest_addr, r.size, r.user_addr) != key]
        if len(remaining) == len(self._memory.regions):
            raise RequestError(
                f"no memory region of {wanted.size:#x} bytes at guest address"
                f" {wanted.guest_addr:#x}"
            )
        self._change_memory(lambda: remaining)

    def _change_memory(self, make_regions: Callable[[], list[Region]]) -> None:
        try:
            memory = GuestMemory(make_regions())
            self._check_log(memory)
        except ValueError as error:
            raise RequestError(str(error)) from error
        self._memory = memory
        self._restart_rings()

    def _restart_rings(self) -> None:
        """Have the rings that run go on in the present memory, logged if that is wanted."""
        self._device.detach_memory()
        for vring in self._vrings:
            if vring.ring is not None:
                self._start_ring(vring)

    # The log of dirty pages

    @property
    def _logs(self) -> bool:
        return bool(self._features & VHOST_F_LOG_ALL)

    def _check_log(self, memory: GuestMemory) -> None:
        """Raise ``ValueError`` if writes are logged, and not all of ``memory`` is in the log."""
        if self._logs and (self._log is None or not self._log.covers(memory)):
            raise ValueError(_LOG_TOO_SMALL)

    def _set_log_base(self, message: Message) -> bytes:
        """Map the log of dirty pages (VHOST_USER_SET_LOG_BASE).

        The front-end expects a reply, and ignores what is in it: a front-end whose log cannot be
        used gets an error when it wants writes to be logged.
        """
        wanted = wire.log_base.unpack_from(message.payload)
        if len(message.fds) != 1:
            raise ProtocolError("SET_LOG_BASE without a descriptor")
        log: DirtyLog | None = None
        problem = _LOG_TOO_SMALL
        try:
            log = DirtyLog(message.fds[0], wanted.offset, wanted.size)
        except ValueError as error:
            problem = str(error)
        if log is None or not log.covers(self._memory):
            if log is not None:
                log.close()
            log = None
            self._use_log(None)
            if self._logs:
                raise ProtocolError(f"SET_LOG_BASE: {problem}")
            _log.warning("front-end's SET_LOG_BASE refused: %s", problem)
            return wire.number.pack(value=1)
        self._use_log(log)
        if self._logs:
            self._restart_rings()
        return wire.number.pack()

    def _set_log_fd(self, message: Message) -> None:
        """Take the eventfd that is written after the log (VHOST_USER_SET_LOG_FD)."""
        self._use_log_event(message.take_fd())

    def _use_log(self, log: DirtyLog | None) -> None:
        if self._log is not None:
            self._log.close()
        self._log = log
        if log is not None:
            log.event_fd = self._log_event_fd

    def _use_log_event(self, fd: int | None) -> None:
        if fd is not None:
            try:
                os.set_blocking(fd, False)
            except OSError:
                os.close(fd)
                raise
        former, self._log_event_fd = self._log_event_fd, fd
        if self._log is not None:
            self._log.event_fd = fd
        if former is not None:
            os.close(former)

    # Migration

    def _set_device_state_fd(self, message: Message) -> bytes:
        """Begin to save or load the state (VHOST_USER_SET_DEVICE_STATE_FD)."""
        wanted = wire.device_state.unpack_from(message.payload)
        transfer = self._device.state_transfer
        assert transfer is not None
        fd = message.take_fd()
        if fd is None:
            raise ProtocolError("SET_DEVICE_STATE_FD without a descriptor")
        problem: str | None = None
        if wanted.phase != wire.PHASE_STOPPED:
            problem = f"there is no phase {wanted.phase}"
        elif wanted.direction not in (Direction.SAVE, Direction.LOAD):
            problem = f"there is no direction {wanted.direction}"
        elif any(vring.ring is not None for vring in self._vrings):
            problem = "rings run"
        if problem is None:
            direction = Direction(wanted.direction)
            if direction is Direction.LOAD:
                # Where rings go on comes from another back-end, and is no reset.
                for vring in self._vrings:
                    vring.forget_guest()
            try:
                transfer.begin(direction, fd)
            except StateError as error:
                problem = str(error)
        else:
            os.close(fd)
        if problem is not None:
            _log.error("front-end's SET_DEVICE_STATE_FD refused: %s", problem)
        return wire.number.pack(value=wire.VRING_NO_FD | (problem is not None))

    def _check_device_state(self, _message: Message) -> bytes:
        """Return whether the state was transferred (VHOST_USER_CHECK_DEVICE_STATE)."""
        transfer = self._device.state_transfer
        assert transfer is not None
        return wire.number.pack(value=transfer.check() is not None)

    # Rings

    def _vring(self, index: int) -> Vring:
        if index >= len(self._vrings):
            raise ProtocolError(f"no queue {index}: there are {len(self._vrings)}")
        return self._vrings[index]

    def _stopped_vring(self, message: Message, index: int) -> Vring:
        vring = self._vring(index)
        if vring.ring is not None:
            raise ProtocolError(f"{message.request.name} while queue {index} runs")
        return vring

    def _set_vring_num(self, message: Message) -> None:
        """Set a ring's size (VHOST_USER_SET_VRING_NUM)."""
        state = wire.vring_state.unpack_from(message.payload)
        if not 0 < state.num <= MAX_RING_SIZE or state.num & (state.num - 1):
            raise ProtocolError(
                f"SET_VRING_NUM: {state.num} is not a power of two up to {MAX_RING_SIZE}"
            )
        self._stopped_vring(message, state.index).size = state.num

    def _set_vring_addr(self, message: Message) -> None:
        """Set the addresses of a ring's parts (VHOST_USER_SET_VRING_ADDR)."""
        where = wire.vring_addr.unpack_from(message.payload)
        if where.flags & ~wire.VRING_LOG:
            raise RequestError(f"unknown flags {where.flags:#x}")
        vring = self._vring(where.index)
        address = RingAddress(where.descriptor, where.available, where.used)
        if address != vring.address:
            vring = self._stopped_vring(message, where.index)
        log_address = where.log if where.flags & wire.VRING_LOG else None
        if log_address is not None:
            _, _, used = RingMemory.lengths(vring.size, event_idx=True)
            if self._log is None or not self._log.covers_range(log_address, used):
                raise RequestError(f"the used ring at {log_address:#x} is not in the log")
        vring.address, vring.log_address = address, log_address
        if vring.ring is not None and self._logs:
            self._restart_rings()

    def _set_vring_base(self, message: Message) -> None:
        """Set the index at which a ring starts (VHOST_USER_SET_VRING_BASE)."""
        state = wire.vring_state.unpack_from(message.payload)
        if state.num > 0xFFFF:
            raise ProtocolError(f"SET_VRING_BASE: {state.num} is no 16-bit index")
        vring = self._stopped_vring(message, state.index)
        if vring.has_run and vring.base != state.num:
            # A ring goes on where it stopped, unless the driver has reset the device. QEMU reports
            # a guest's reboot in no other way.
            _log.info("the guest has reset the device")
            self._forget_guest()
        vring.set_base(state.num)

    def _get_vring_base(self, message: Message) -> bytes:
        """Stop a ring and return the index of its next chain (VHOST_USER_GET_VRING_BASE).

        See "Starting and stopping rings".
        """
        vring = self._vring(wire.vring_state.unpack_from(message.payload).index)
        self._stop(vring)
        vring.set_kick(None)
        vring.broken = False
        return wire.vring_state.pack(index=vring.index, num=vring.base)

    def _set_vring_kick(self, message: Message) -> None:
        """Take the kick descriptor, and start the ring (VHOST_USER_SET_VRING_KICK).

        See "Starting and stopping rings".
        """
        vring = self._event_vring(message)
        fd = message.take_fd()
        if fd is None:
            raise RequestError(
                f"queue {vring.index} without a kick descriptor: polling is not done here"
            )
        self._stop(vring)
        vring.set_kick(fd)
        vring.broken = False
        self._update_ring_state(vring)

    def _set_vring_call(self, message: Message) -> None:
        """Take the descriptor that interrupts the driver (VHOST_USER_SET_VRING_CALL)."""
        vring = self._event_vring(message)
        vring.set_call(message.take_fd())
        if vring.ring is not None:
            # The driver must notice what was added before there was a descriptor, or with the
            # former one.
            vring.interrupt()

    def _set_vring_err(self, message: Message) -> None:
        """Take the descriptor that reports a broken ring (VHOST_USER_SET_VRING_ERR)."""
        self._event_vring(message).set_err(message.take_fd())

    def _event_vring(self, message: Message) -> Vring:
        value = wire.number.unpack_from(message.payload).value
        if value & ~(wire.VRING_INDEX_MASK | wire.VRING_NO_FD):
            raise ProtocolError(f"{message.request.name}: unknown bits in {value:#x}")
        if len(message.fds) != (0 if value & wire.VRING_NO_FD else 1):
            raise ProtocolError(f"{message.request.name} with {len(message.fds)} descriptors")
        return self._vring(value & wire.VRING_INDEX_MASK)

    def _set_vring_enable(self, message: Message) -> None:
        """Enable or disable a ring (VHOST_USER_SET_VRING_ENABLE; "Ring states")."""
        state = wire.vring_state.unpack_from(message.payload)
        if state.num > 1:
            raise ProtocolError(f"SET_VRING_ENABLE: {state.num} is neither 0 nor 1")
        vring = self._vring(state.index)
        vring.enabled = bool(state.num)
        self._update_ring_state(vring)

    def _update_ring_state(self, vring: Vring) -> None:
        """Start the ring if it has all that it needs, stop it otherwise."""
        if not vring.ready:
            self._stop(vring)
        elif vring.ring is None and self._start_ring(vring):
            try:
                self._device.ring_started(vring, self._features)
            except OSError as error:
                self._stop(vring)
                raise RequestError(
                    f"queue {vring.index}: its kick descriptor cannot be waited for: {error}"
                ) from error

    def _start_ring(self, vring: Vring) -> bool:
        """Find the ring in the guest's memory; a ring that is not there is broken."""
        features = self._features
        try:
            vring.start(
                self._memory,
                event_idx=bool(features & VirtioFeature.EVENT_IDX),
                indirect=bool(features & VirtioFeature.INDIRECT_DESC),
                log=self._log if self._logs else None,
            )
        except VirtqueueError as error:
            # The text alone, as in ``handle``.
            _log.error("queue %d stopped: %s", vring.index, str(error))
            self._device.ring_stopped(vring)
            vring.fail()
            return False
        return True

    def _stop(self, vring: Vring) -> None:
        self._device.ring_stopped(vring)
        vring.stop()


def _map(fd: int, wanted: Any) -> Region:
    """Map one region as a ``MEMORY_REGION`` describes it."""
    return Region.map(fd, wanted.mmap_offset, wanted.guest_addr, wanted.size, wanted.user_addr)


def _map_again(region: RegionState, fds: ReceivedDescriptors) -> Region:
    """Map the region of a state."""
    fd = fds.take(region.fd)
    try:
        return Region.map(fd, region.offset, region.guest_addr, region.length, region.user_addr)
    finally:
        os.close(fd)


_R = FrontEndRequest
_NOTHING = ProtocolFeature(0)
_SLOTS = ProtocolFeature.CONFIGURE_MEM_SLOTS
_NUMBER, _STATE, _SINGLE = wire.number.size, wire.vring_state.size, wire.single_region.size


@dataclass(frozen=True, slots=True)
class _Rule:
    """The form of a message, and its handler.

    ``size`` is the payload's, ``None`` when that varies.
    """

    handler: Callable[[Backend, Message], bytes | None]
    size: int | None
    max_fds: int = 0
    needs: ProtocolFeature = _NOTHING


_RULES: Mapping[FrontEndRequest, _Rule] = MappingProxyType(
    {
        _R.GET_FEATURES: _Rule(Backend._get_features, 0),
        _R.SET_FEATURES: _Rule(Backend._set_features, _NUMBER),
        _R.SET_OWNER: _Rule(Backend._set_owner, 0),
        _R.RESET_OWNER: _Rule(Backend._reset_owner, 0),
        _R.SET_MEM_TABLE: _Rule(Backend._set_mem_table, None, max_fds=wire.MAX_TABLE_REGIONS),
        _R.SET_LOG_BASE: _Rule(
            Backend._set_log_base, wire.log_base.size, max_fds=1, needs=ProtocolFeature.LOG_SHMFD
        ),
        _R.SET_LOG_FD: _Rule(Backend._set_log_fd, None, max_fds=1),
        _R.SET_VRING_NUM: _Rule(Backend._set_vring_num, _STATE),
        _R.SET_VRING_ADDR: _Rule(Backend._set_vring_addr, wire.vring_addr.size),
        _R.SET_VRING_BASE: _Rule(Backend._set_vring_base, _STATE),
        _R.GET_VRING_BASE: _Rule(Backend._get_vring_base, _STATE),
        _R.SET_VRING_KICK: _Rule(Backend._set_vring_kick, _NUMBER, max_fds=1),
        _R.SET_VRING_CALL: _Rule(Backend._set_vring_call, _NUMBER, max_fds=1),
        _R.SET_VRING_ERR: _Rule(Backend._set_vring_err, _NUMBER, max_fds=1),
        _R.GET_PROTOCOL_FEATURES: _Rule(Backend._get_protocol_features, 0),
        _R.SET_PROTOCOL_FEATURES: _Rule(Backend._set_protocol_features, _NUMBER),
        _R.GET_QUEUE_NUM: _Rule(Backend._get_queue_num, 0, needs=ProtocolFeature.MQ),
        _R.SET_VRING_ENABLE: _Rule(Backend._set_vring_enable, _STATE),
        _R.GET_CONFIG: _Rule(Backend._get_config, None, needs=ProtocolFeature.CONFIG),
        _R.SET_CONFIG: _Rule(Backend._set_config, None, needs=ProtocolFeature.CONFIG),
        _R.RESET_DEVICE: _Rule(Backend._reset_device, 0, needs=ProtocolFeature.RESET_DEVICE),
        _R.GET_MAX_MEM_SLOTS: _Rule(Backend._get_max_mem_slots, 0, needs=_SLOTS),
        _R.ADD_MEM_REG: _Rule(Backend._add_mem_reg, _SINGLE, max_fds=1, needs=_SLOTS),
        _R.SET_DEVICE_STATE_FD: _Rule(
            Backend._set_device_state_fd,
            wire.device_state.size,
            max_fds=1,
            needs=ProtocolFeature.DEVICE_STATE,
        ),
        _R.CHECK_DEVICE_STATE: _Rule(
            Backend._check_device_state, 0, needs=ProtocolFeature.DEVICE_STATE
        ),
        # Some front-ends send the region's descriptor along; it has no use.
        _R.REM_MEM_REG: _Rule(Backend._rem_mem_reg, _SINGLE, max_fds=1, needs=_SLOTS),
    }
)
