//! Notice of processes that the kernel killed for lack of memory.
//!
//! The kernel notifies about changes of a group's `memory.events` through inotify; one inotify descriptor serves
//! all containers. A container's last look happens when its init process has ended, so a kill that ended it is
//! reported before the container can be removed.

use std::collections::{HashMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::cgroup::Cgroup;
use crate::error::{Context, Result};
use crate::poll::register;

/// Reports kills to whoever asks next.
#[derive(Debug, Clone)]
pub struct OomWatch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    events: AsyncFd<OwnedFd>,
    state: Mutex<State>,
    reported: Notify,
}

#[derive(Debug, Default)]
struct State {
    watched: HashMap<i32, Watched>,
    /// Containers with kills that nobody has asked for yet, each at most once.
    pending: VecDeque<String>,
}

#[derive(Debug)]
struct Watched {
    container: String,
    group: Cgroup,
    kills: u64,
}

impl OomWatch {
    /// Starts watching.
    ///
    /// # Errors
    /// If there is no inotify.
    pub fn start() -> Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .doing(|| "open inotify".to_owned())?;
        let events = register(fd).doing(|| "watch inotify".to_owned())?;
        let watch = Self(Arc::new(Shared { events, state: Mutex::default(), reported: Notify::new() }));
        let follower = watch.clone();
        tokio::spawn(async move { follower.follow().await });
        Ok(watch)
    }

    /// Watches a container's group.
    ///
    /// # Errors
    /// If the group has no memory controller.
    pub fn add(&self, container: &str, group: &Cgroup) -> Result<()> {
        let file = group.path().join("memory.events");
        let number = inotify::add_watch(self.0.events.get_ref(), &file, WatchFlags::MODIFY)
            .doing(|| format!("watch {}", file.display()))?;
        let kills = group.oom_kills()?;
        let watched = Watched { container: container.to_owned(), group: group.clone(), kills };
        self.state().watched.insert(number, watched);
        Ok(())
    }

    /// Looks once more at a container's group.
    pub fn look(&self, container: &str) {
        self.look_at(|_, watched| watched.container == container);
    }

    /// Ends the watch of a container's group. Kills not asked for yet stay reported.
    pub fn remove(&self, container: &str) {
        let number =
            self.state().watched.iter().find(|(_, watched)| watched.container == container).map(|(n, _)| *n);
        if let Some(number) = number {
            self.state().watched.remove(&number);
            // The kernel drops the watch itself when the group goes first.
            let _ = inotify::remove_watch(self.0.events.get_ref(), number);
        }
    }

    /// Waits for the next container with a kill.
    pub async fn next(&self) -> String {
        loop {
            let reported = self.0.reported.notified();
            if let Some(container) = self.state().pending.pop_front() {
                return container;
            }
            reported.await;
        }
    }

    async fn follow(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        loop {
            let Ok(mut ready) = self.0.events.readable().await else { return };
            ready.clear_ready();
            let mut reader = Reader::new(self.0.events.get_ref(), &mut buffer);
            while let Ok(event) = reader.next() {
                let number = event.wd();
                self.look_at(|at, _| at == number);
            }
        }
    }

    fn look_at(&self, which: impl Fn(i32, &Watched) -> bool) {
        let mut state = self.state();
        let State { watched, pending } = &mut *state;
        for (number, watched) in watched.iter_mut() {
            if !which(*number, watched) {
                continue;
            }
            let kills = watched.group.oom_kills().unwrap_or(watched.kills);
            if kills > watched.kills && !pending.contains(&watched.container) {
                pending.push_back(watched.container.clone());
                self.0.reported.notify_one();
            }
            watched.kills = kills;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn each_new_kill_is_reported_once() {
        let directory = tempfile::tempdir().unwrap();
        let events = directory.path().join("memory.events");
        fs::write(&events, "oom 0\noom_kill 1\n").unwrap();
        let watch = OomWatch::start().unwrap();
        let group = Cgroup::at(directory.path().to_owned());
        watch.add("c1", &group).unwrap();
        fs::write(&events, "oom 3\noom_kill 2\n").unwrap();
        assert_eq!(tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap(), "c1");
        watch.look("c1");
        assert!(tokio::time::timeout(Duration::from_millis(50), watch.next()).await.is_err());
        watch.remove("c1");
        fs::write(&events, "oom_kill 9\n").unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), watch.next()).await.is_err());
    }
}
