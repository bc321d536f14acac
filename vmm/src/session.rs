//! A machine's life as its parent sees it: plan in, events out, requests answered, one end.
//!
//! The parent is at the other end of a `SOCK_SEQPACKET` socket ([`launch::control`]); the first packet is the
//! plan. When the parent goes away, so does the machine.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use launch::control::{Event, Exit, Mark, Message, Request, STATUS_LAUNCH_REFUSED};
use launch::plan::LaunchPlan;
use vmm_client::{Packet, monotonic_us, receive, send};

use crate::machine::{Defined, LaunchError, MachineNotice, Running};

/// Stack of the thread that answers requests.
const CONTROL_STACK_BYTES: usize = 128 * 1024;

/// What the parent is told when files cannot be received.
const FILES_LOST: &str = "files of the request: expected room for all of them, found as many files open as the limit \
                          (RLIMIT_NOFILE) allows, or more sent than a request may carry";

/// Runs the machine that the parent behind `control` asks for, to its end. Returns the process's exit status.
pub fn run(control: impl AsFd + Send + Sync + 'static) -> u8 {
    let started = Event::Mark { mark: Mark::VmmStart, monotonic_us: monotonic_us() };
    let parent = Arc::new(Parent(control));
    let refused = |why: String| {
        eprintln!("uvm-vmm: launch refused: {why}");
        parent.tell(Event::Refused(why));
        STATUS_LAUNCH_REFUSED
    };
    let plan = match receive(parent.socket()) {
        Ok(Some(packet)) => LaunchPlan::from_json(&packet.bytes).map_err(|error| error.to_string()),
        Ok(None) => Err("the parent went away before it sent a launch plan".into()),
        Err(errno) => Err(format!("cannot read the launch plan from standard input: {errno}")),
    };
    parent.tell(started);
    let (end, ended) = channel();
    let running = match plan.map(|plan| launch(plan, &parent, &end)) {
        Ok(Ok(running)) => running,
        Ok(Err(error)) => return refused(error.to_string()),
        Err(why) => return refused(why),
    };
    let answering = Arc::clone(&parent);
    let control = thread::Builder::new().name("control".into()).stack_size(CONTROL_STACK_BYTES);
    if let Err(error) = control.spawn(move || answer(&answering, &running, &end)) {
        return refused(format!("cannot start the control thread: {error}"));
    }
    let exit = ended.recv().unwrap_or_else(|_| Exit::Internal("every thread has ended".into()));
    eprintln!("uvm-vmm: {exit}");
    let status = exit.status();
    parent.tell(Event::Ended(exit));
    status
}

fn launch<S: AsFd + Send + Sync + 'static>(
    plan: LaunchPlan,
    parent: &Arc<Parent<S>>,
    end: &Sender<Exit>,
) -> Result<Running, LaunchError> {
    let measured = Defined::new(plan)?.populate()?.measure()?;
    parent.mark(Mark::Launched);
    if let Some(measurement) = measured.measurement() {
        parent.tell(Event::Measured(measurement.clone()));
    }
    let (parent, end) = (Arc::clone(parent), end.clone());
    measured.start(move |notice| match notice {
        MachineNotice::Reached(mark) => parent.mark(mark),
        // Only the first end counts; the receiver is gone after it.
        MachineNotice::Ended(exit) => drop(end.send(exit)),
    })
}

/// Answers the parent's requests until it asks for the end or goes away.
fn answer<S: AsFd>(parent: &Parent<S>, running: &Running, end: &Sender<Exit>) {
    while let Ok(Some(packet)) = receive(parent.socket()) {
        let request = serde_json::from_slice(&packet.bytes);
        let refusal = match request {
            Ok(Request::Stop) => {
                parent.reply(None);
                break;
            }
            Ok(_) if packet.files_lost => Some(FILES_LOST.into()),
            Ok(request) => obey(request, packet, running).err(),
            Err(error) => Some(format!("request: {error}")),
        };
        parent.reply(refusal);
    }
    // The machine may have ended by itself just before.
    let _ = end.send(Exit::Stopped);
}

fn obey(request: Request, packet: Packet, running: &Running) -> Result<(), String> {
    match request {
        Request::Attach { slot, at, segments } => {
            let files = packet.files.into_iter().map(File::from).collect();
            running.attach(slot, at, &segments, files).map_err(|error| error.to_string())
        }
        Request::Detach { slot, at } => running.detach(slot, at).map_err(|error| error.to_string()),
        Request::Stop => Ok(()),
    }
}

/// The other end of the control socket.
struct Parent<S>(S);

impl<S: AsFd> Parent<S> {
    fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn mark(&self, mark: Mark) {
        self.tell(Event::Mark { mark, monotonic_us: monotonic_us() });
    }

    fn tell(&self, event: Event) {
        self.say(&Message::Event(event));
    }

    fn reply(&self, refusal: Option<String>) {
        self.say(&Message::Reply(refusal));
    }

    fn say(&self, message: &Message) {
        if let Ok(json) = serde_json::to_vec(message) {
            // A parent that has gone away is noticed where its requests are read.
            let _ = send(self.socket(), &json, &[]);
        }
    }
}
