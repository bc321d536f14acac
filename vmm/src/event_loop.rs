//! A thread that waits for file descriptors and lets handlers act on them.
//!
//! A device's data path is a [`Handler`] that one loop thread owns outright, so it needs no lock. Virtual
//! CPU threads hand handlers over and take them away through a [`LoopHandle`]; taking one away waits until
//! the loop has dropped it, so after [`LoopHandle::remove`] nothing touches the guest memory that it used.
//!
//! Handler numbers are never used twice: an event that was already fetched for a handler that is gone finds
//! nothing.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use libc::EFD_NONBLOCK;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Stack of a loop thread in bytes: handlers keep what is large on the heap.
const STACK_BYTES: usize = 256 * 1024;
/// Events fetched by one wait.
const BATCH: usize = 32;
/// Handler number of the loop's own wake-up descriptor.
const WAKE: u32 = 0;

/// Why a loop did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The loop thread has ended.
    #[error("event loop: the thread has ended")]
    Ended,
    /// The handler could not register its descriptors, or the loop could not be woken.
    #[error("event loop: {0}")]
    Io(#[from] io::Error),
}

/// What happened on a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness(u32);

impl Readiness {
    /// There may be something to read, an end of file or an error included.
    #[must_use]
    pub fn readable(self) -> bool {
        self.any(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR)
    }

    /// There may be room to write, or an error to learn of.
    #[must_use]
    pub fn writable(self) -> bool {
        self.any(EventSet::OUT | EventSet::HANG_UP | EventSet::ERROR)
    }

    /// Both directions are closed by the other side.
    #[must_use]
    pub fn hung_up(self) -> bool {
        self.any(EventSet::HANG_UP | EventSet::ERROR)
    }

    fn any(self, set: EventSet) -> bool {
        self.0 & set.bits() != 0
    }
}

/// How a descriptor is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Report while it is readable.
    Read,
    /// Report every change in either direction, once; the handler remembers what it has not used up.
    Edges,
}

/// Where a handler registers its descriptors.
#[derive(Debug)]
pub struct Registry<'a> {
    epoll: &'a Epoll,
    handler: u32,
    watched: &'a mut Vec<RawFd>,
}

impl Registry<'_> {
    /// Watches `source`; its events reach the handler with `token`.
    ///
    /// # Errors
    /// When epoll refuses the descriptor.
    pub fn watch(&mut self, source: &impl AsRawFd, token: u32, interest: Interest) -> io::Result<()> {
        let events = match interest {
            Interest::Read => EventSet::IN,
            Interest::Edges => {
                EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED
            }
        };
        let fd = source.as_raw_fd();
        let data = u64::from(self.handler) << 32 | u64::from(token);
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data))?;
        self.watched.push(fd);
        Ok(())
    }

    /// Stops watching `source`. To be called before the descriptor is closed.
    pub fn unwatch(&mut self, source: &impl AsRawFd) {
        let fd = source.as_raw_fd();
        if let Some(position) = self.watched.iter().position(|&watched| watched == fd) {
            self.watched.swap_remove(position);
            forget(self.epoll, fd);
        }
    }
}

fn forget(epoll: &Epoll, fd: RawFd) {
    if let Err(error) = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default()) {
        log::warn!("event loop: cannot stop watching descriptor {fd}: {error}");
    }
}

/// Something that acts on its descriptors, owned by one loop thread.
pub trait Handler: Send {
    /// Registers the descriptors. Runs on the loop thread, before any event.
    ///
    /// # Errors
    /// When a descriptor cannot be watched; the handler is then dropped.
    fn start(&mut self, registry: &mut Registry<'_>) -> io::Result<()>;

    /// Acts on an event. It must not block for long: other handlers of the loop wait meanwhile.
    fn ready(&mut self, token: u32, readiness: Readiness, registry: &mut Registry<'_>);
}

/// Names a handler within its loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandlerId(u32);

enum Command {
    Add(HandlerId, Box<dyn Handler>, SyncSender<io::Result<()>>),
    Remove(HandlerId, SyncSender<()>),
    Stop,
}

/// Talks to a loop thread from other threads. Must not be used from the loop's own thread: it waits for it.
#[derive(Clone)]
pub struct LoopHandle {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    next_id: Arc<AtomicU32>,
}

impl LoopHandle {
    /// Gives `handler` to the loop and waits until its descriptors are registered.
    ///
    /// # Errors
    /// When the handler's [`Handler::start`] fails or the loop has ended.
    pub fn add(&self, handler: Box<dyn Handler>) -> Result<HandlerId, LoopError> {
        let id = HandlerId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let (done, started) = sync_channel(1);
        self.send(Command::Add(id, handler, done))?;
        started.recv().map_err(|_| LoopError::Ended)??;
        Ok(id)
    }

    /// Drops a handler and waits until that is done. A handler that is not there is no error.
    ///
    /// # Errors
    /// When the loop has ended; its handlers are then gone too.
    pub fn remove(&self, id: HandlerId) -> Result<(), LoopError> {
        let (done, dropped) = sync_channel(1);
        self.send(Command::Remove(id, done))?;
        dropped.recv().map_err(|_| LoopError::Ended)
    }

    fn send(&self, command: Command) -> Result<(), LoopError> {
        self.commands.send(command).map_err(|_| LoopError::Ended)?;
        Ok(self.wake.write(1)?)
    }
}

/// A running loop thread. Dropping it ends the thread and with it all handlers.
pub struct EventLoop {
    handle: LoopHandle,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// Starts a loop on a thread called `name`.
    ///
    /// # Errors
    /// When the thread, the epoll instance or the wake-up descriptor cannot be made.
    pub fn spawn(name: &str) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let event = EpollEvent::new(EventSet::IN, u64::from(WAKE) << 32);
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), event)?;
        let (commands, received) = channel();
        let runner = Runner { epoll, wake: Arc::clone(&wake), commands: received, handlers: BTreeMap::new() };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || runner.run())?;
        let handle = LoopHandle { commands, wake, next_id: Arc::new(AtomicU32::new(WAKE + 1)) };
        Ok(Self { handle, thread: Some(thread) })
    }

    /// A handle that other threads may use.
    #[must_use]
    pub fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        let stopped = self.handle.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && stopped.is_ok()
            && thread.join().is_err()
        {
            log::error!("event loop: the thread panicked");
        }
    }
}

struct Entry {
    handler: Box<dyn Handler>,
    watched: Vec<RawFd>,
}

struct Runner {
    epoll: Epoll,
    wake: Arc<EventFd>,
    commands: Receiver<Command>,
    handlers: BTreeMap<u32, Entry>,
}

impl Runner {
    fn run(mut self) {
        let mut events = [EpollEvent::default(); BATCH];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return log::error!("event loop: waiting failed: {error}"),
            };
            for event in events.iter().take(count) {
                let [handler, token] = halves(event.data());
                if handler != WAKE {
                    self.dispatch(handler, token, Readiness(event.events()));
                } else if !self.obey() {
                    return;
                }
            }
        }
    }

    fn dispatch(&mut self, id: u32, token: u32, readiness: Readiness) {
        if let Some(Entry { handler, watched }) = self.handlers.get_mut(&id) {
            handler.ready(token, readiness, &mut Registry { epoll: &self.epoll, handler: id, watched });
        }
    }

    /// Obeys what is in the command queue; `false` means stop.
    fn obey(&mut self) -> bool {
        // An unreadable counter only means that another wake-up already took it.
        let _ = self.wake.read();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Add(id, handler, done) => {
                    let outcome = self.add(id.0, handler);
                    // Whoever asked may have given up waiting.
                    let _ = done.send(outcome);
                }
                Command::Remove(id, done) => {
                    if let Some(entry) = self.handlers.remove(&id.0) {
                        self.retire(entry);
                    }
                    let _ = done.send(());
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn add(&mut self, id: u32, handler: Box<dyn Handler>) -> io::Result<()> {
        let mut entry = Entry { handler, watched: Vec::new() };
        let mut registry = Registry { epoll: &self.epoll, handler: id, watched: &mut entry.watched };
        match entry.handler.start(&mut registry) {
            Ok(()) => {
                self.handlers.insert(id, entry);
                Ok(())
            }
            Err(error) => {
                self.retire(entry);
                Err(error)
            }
        }
    }

    /// Descriptors that others share stay open when the handler goes, so they are taken out by hand.
    fn retire(&self, entry: Entry) {
        for &fd in &entry.watched {
            forget(&self.epoll, fd);
        }
        drop(entry.handler);
    }
}

fn halves(data: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = data.to_be_bytes();
    [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])]
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use super::*;

    struct Echo {
        fd: Arc<EventFd>,
        seen: Sender<u32>,
        dropped: Arc<Mutex<bool>>,
    }

    impl Handler for Echo {
        fn start(&mut self, registry: &mut Registry<'_>) -> io::Result<()> {
            registry.watch(&*self.fd, 7, Interest::Read)
        }

        fn ready(&mut self, token: u32, readiness: Readiness, _: &mut Registry<'_>) {
            assert!(readiness.readable() && !readiness.hung_up());
            self.fd.read().unwrap();
            self.seen.send(token).unwrap();
        }
    }

    impl Drop for Echo {
        fn drop(&mut self) {
            *self.dropped.lock().unwrap() = true;
        }
    }

    #[test]
    fn a_removed_handler_is_dropped_before_remove_returns() {
        let events = EventLoop::spawn("test-loop").unwrap();
        let fd = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let (seen, tokens) = channel();
        let dropped = Arc::new(Mutex::new(false));
        let handle = events.handle();
        let echo = Echo { fd: Arc::clone(&fd), seen: seen.clone(), dropped: Arc::clone(&dropped) };
        let id = handle.add(Box::new(echo)).unwrap();
        fd.write(1).unwrap();
        assert_eq!(tokens.recv_timeout(Duration::from_secs(5)), Ok(7));
        handle.remove(id).unwrap();
        assert!(*dropped.lock().unwrap());
        // The descriptor outlives the handler but is not watched any more: it can be added again.
        let echo = Echo { fd: Arc::clone(&fd), seen, dropped };
        handle.add(Box::new(echo)).unwrap();
        fd.write(1).unwrap();
        assert_eq!(tokens.recv_timeout(Duration::from_secs(5)), Ok(7));
    }

    #[test]
    fn a_handler_that_cannot_start_is_refused() {
        struct Broken;
        impl Handler for Broken {
            fn start(&mut self, _: &mut Registry<'_>) -> io::Result<()> {
                Err(io::Error::other("no"))
            }
            fn ready(&mut self, _: u32, _: Readiness, _: &mut Registry<'_>) {}
        }
        let events = EventLoop::spawn("test-loop").unwrap();
        assert!(matches!(events.handle().add(Box::new(Broken)), Err(LoopError::Io(_))));
    }
}
