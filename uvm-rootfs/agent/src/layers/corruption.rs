//! Notice of layers' blocks that do not match their hash trees.
//!
//! dm-verity fails the read, and tells the listeners of the kernel's device events which block it was: an event
//! `change` of the block device with `DM_VERITY_ERR_BLOCK_NR=<0 data, 1 tree>,<block>`. It stops telling after a
//! hundred blocks of a device. Only the kernel's own messages count: port 0 is no process's.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::error::{Context, Result};
use crate::note;
use crate::poll::register;

/// Group 1 has the kernel's messages; the others are for device managers.
const KERNEL_GROUP: u32 = 1;
/// Largest device event: the kernel's own buffer has 2048 bytes, and the path comes before it.
const MAX_EVENT: usize = 8192;
/// Most blocks that wait to be asked for.
const MAX_PENDING: usize = 256;

/// A block that does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// Root hash of the layer.
    pub root_hash: String,
    /// Number of the 4096-byte block, from the layer's beginning.
    pub block: u64,
    /// Whether it is a block of the hash tree rather than of the data.
    pub in_tree: bool,
}

/// Reports such blocks to whoever asks next.
#[derive(Debug, Clone)]
pub struct CorruptionWatch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    events: AsyncFd<OwnedFd>,
    state: Mutex<State>,
    reported: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Root hashes by the number of their verity device, "major:minor".
    watched: BTreeMap<String, String>,
    pending: VecDeque<Corruption>,
}

impl CorruptionWatch {
    /// Starts listening.
    ///
    /// # Errors
    /// If the kernel has no device events.
    pub fn start() -> Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::KOBJECT_UEVENT);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)
            .doing(|| "open a socket for device events".to_owned())?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))
            .doing(|| "listen to device events".to_owned())?;
        let events = register(socket).doing(|| "watch device events".to_owned())?;
        let watch = Self(Arc::new(Shared { events, state: Mutex::default(), reported: Notify::new() }));
        let follower = watch.clone();
        tokio::spawn(async move { follower.follow().await });
        Ok(watch)
    }

    /// Watches the verity device with this number ("major:minor"), which has this layer.
    pub fn add(&self, number: &str, root_hash: &str) {
        self.state().watched.insert(number.to_owned(), root_hash.to_owned());
    }

    /// Ends the watch of a device. Blocks not asked for yet stay reported.
    pub fn remove(&self, number: &str) {
        self.drain();
        self.state().watched.remove(number);
    }

    /// Waits for the next block that does not match.
    pub async fn next(&self) -> Corruption {
        loop {
            let reported = self.0.reported.notified();
            if let Some(found) = self.state().pending.pop_front() {
                return found;
            }
            reported.await;
        }
    }

    async fn follow(&self) {
        loop {
            let Ok(mut ready) = self.0.events.readable().await else { return };
            ready.clear_ready();
            self.drain();
        }
    }

    /// Takes in all events that have arrived.
    fn drain(&self) {
        let mut buffer = [0; MAX_EVENT];
        loop {
            match recvfrom(self.0.events.get_ref(), &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _, Some(sender))) => {
                    let kernel = SocketAddrNetlink::try_from(sender).is_ok_and(|sender| sender.pid() == 0);
                    let event = buffer.get(..length).filter(|_| kernel);
                    if let Some(event) = event.and_then(Event::parse) {
                        self.report(event);
                    }
                }
                Ok((_, _, None)) | Err(rustix::io::Errno::INTR) => {}
                // The kernel had more to say than the socket holds: the device's status still tells.
                Err(rustix::io::Errno::NOBUFS) => note!("device events were lost"),
                Err(_) => return,
            }
        }
    }

    fn report(&self, event: Event) {
        let mut state = self.state();
        // A layer that fails while it is set up is reported by the request that asked for it.
        let Some(root_hash) = state.watched.get(&event.device).cloned() else { return };
        let Event { block, in_tree, .. } = event;
        let found = Corruption { root_hash, block, in_tree };
        note!("layer {}: block {block} does not match its hash tree", found.root_hash);
        if state.pending.contains(&found) || state.pending.len() >= MAX_PENDING {
            return;
        }
        state.pending.push_back(found);
        self.0.reported.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a device event says about a block.
#[derive(Debug, PartialEq, Eq)]
struct Event {
    /// "major:minor".
    device: String,
    block: u64,
    in_tree: bool,
}

impl Event {
    /// Reads an event: `ACTION@PATH`, then `KEY=value`, each ended by a NUL.
    fn parse(event: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(event).ok()?;
        let value = |key: &str| text.split('\0').find_map(|entry| entry.strip_prefix(key)?.strip_prefix('='));
        let (kind, block) = value("DM_VERITY_ERR_BLOCK_NR")?.split_once(',')?;
        let in_tree = match kind {
            "0" => false,
            "1" => true,
            _ => return None,
        };
        let number = |key| value(key)?.parse::<u32>().ok();
        let device = format!("{}:{}", number("MAJOR")?, number("MINOR")?);
        Some(Self { device, block: block.parse().ok()?, in_tree })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const EVENT: &str = "change@/devices/virtual/block/dm-3\0ACTION=change\0\
        DEVPATH=/devices/virtual/block/dm-3\0SUBSYSTEM=block\0DM_VERITY_ERR_BLOCK_NR=0,17\0MAJOR=252\0MINOR=3\0\
        DEVNAME=dm-3\0DEVTYPE=disk\0DISKSEQ=9\0SEQNUM=1234\0";

    fn event(text: &str) -> Option<Event> {
        Event::parse(text.as_bytes())
    }

    #[test]
    fn the_kernels_events_are_read() {
        let data = Event { device: "252:3".to_owned(), block: 17, in_tree: false };
        assert_eq!(event(EVENT), Some(data));
        let tree = event(&EVENT.replace("=0,17", "=1,18446744073709551615")).unwrap();
        assert_eq!((tree.block, tree.in_tree), (u64::MAX, true));
    }

    #[test]
    fn other_events_say_nothing() {
        assert_eq!(event(""), None);
        assert_eq!(event(&EVENT.replace("DM_VERITY", "XX_VERITY")), None);
        for wrong in ["=2,17", "=0", "=0,", "=0,x", "=0,-1", "=,17"] {
            assert_eq!(event(&EVENT.replace("=0,17", wrong)), None, "{wrong}");
        }
        assert_eq!(event(&EVENT.replace("MINOR=3", "MINOR=x")), None);
        assert_eq!(Event::parse(b"change@\xff\0DM_VERITY_ERR_BLOCK_NR=0,1\0"), None);
    }

    #[tokio::test]
    async fn each_block_of_a_watched_layer_is_reported() {
        let watch = CorruptionWatch::start().unwrap();
        watch.add("252:3", "ab");
        let found = || event(EVENT).unwrap();
        watch.report(Event { device: "252:4".to_owned(), ..found() });
        watch.report(found());
        watch.report(found());
        watch.report(Event { in_tree: true, ..found() });
        let expected = Corruption { root_hash: "ab".to_owned(), block: 17, in_tree: false };
        let soon = |watch: CorruptionWatch| async move {
            timeout(Duration::from_millis(50), watch.next()).await.ok()
        };
        assert_eq!(soon(watch.clone()).await, Some(expected.clone()));
        assert_eq!(soon(watch.clone()).await, Some(Corruption { in_tree: true, ..expected }));
        assert_eq!(soon(watch.clone()).await, None);
        watch.remove("252:3");
        watch.report(found());
        assert_eq!(soon(watch).await, None);
    }

    #[tokio::test]
    async fn what_nobody_asks_for_is_bounded() {
        let watch = CorruptionWatch::start().unwrap();
        watch.add("252:3", "ab");
        for block in 0..10_000 {
            watch.report(Event { device: "252:3".to_owned(), block, in_tree: false });
        }
        assert_eq!(watch.state().pending.len(), MAX_PENDING);
    }
}
