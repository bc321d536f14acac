//! The exit loop: what a virtual CPU's thread does for its whole life.

use std::sync::{Arc, Mutex, PoisonError};

use launch::control::{Exit, Mark};
use vm_superio::Trigger;

use super::bus::Bus;
use super::ports::{Effect, Ports};
use crate::hv::{self, Vcpu, Vm};

/// Stack of a virtual CPU's thread: the loop is shallow, and devices work on threads of their own.
pub const STACK_BYTES: usize = 128 * 1024;

/// What a machine tells whoever runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A step of the boot.
    Reached(Mark),
    /// The machine has ended: a virtual CPU has stopped for good, and the process is to end.
    Ended(Exit),
}

/// Where notices go, and the window that the guest loses once its kernel is entered.
pub struct Observer {
    tell: Box<dyn Fn(Notice) + Send + Sync>,
    vm: Arc<dyn Vm>,
    window_slots: Mutex<Vec<u32>>,
}

impl Observer {
    pub fn new(
        tell: impl Fn(Notice) + Send + Sync + 'static,
        vm: Arc<dyn Vm>,
        window_slots: Vec<u32>,
    ) -> Self {
        Self { tell: Box::new(tell), vm, window_slots: Mutex::new(window_slots) }
    }

    /// Passes a mark on. The guest stands still until whoever is told has returned.
    fn reached(&self, mark: Mark) -> Result<(), Exit> {
        (self.tell)(Notice::Reached(mark));
        if mark == Mark::KernelEntry {
            // The stub has its private copy of the kernel: the shared one has served.
            let mut slots = self.window_slots.lock().unwrap_or_else(PoisonError::into_inner);
            for slot in slots.drain(..) {
                self.vm.unmap(slot).map_err(|error| Exit::Internal(error.to_string()))?;
            }
        }
        Ok(())
    }
}

/// Runs `vcpu` until the machine ends, and says why.
pub fn until_end<T: Trigger>(
    mut vcpu: Box<dyn Vcpu>,
    first: bool,
    bus: &Bus,
    ports: &Mutex<Ports<T>>,
    observer: &Observer,
) {
    let end = if first { observer.reached(Mark::FirstEntry) } else { Ok(()) };
    let end = end.and_then(|()| loop_until_end(vcpu.as_mut(), bus, ports, observer));
    let Err(exit) = end else { return };
    (observer.tell)(Notice::Ended(exit));
}

fn loop_until_end<T: Trigger>(
    vcpu: &mut dyn Vcpu,
    bus: &Bus,
    ports: &Mutex<Ports<T>>,
    observer: &Observer,
) -> Result<(), Exit> {
    let ports = || ports.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        match vcpu.run().map_err(|error| Exit::Internal(error.to_string()))? {
            hv::Exit::Again => {}
            hv::Exit::MmioRead(gpa, data) => bus.read(gpa, data),
            hv::Exit::MmioWrite(gpa, data) => bus.write(gpa, data),
            hv::Exit::PortIn(port, data) => ports().read(port, data),
            hv::Exit::PortOut(port, data) => {
                let effect = ports().write(port, data);
                match effect {
                    Effect::None => {}
                    Effect::Reached(mark) => observer.reached(mark)?,
                    Effect::End(exit) => return Err(exit),
                }
            }
            hv::Exit::Terminated(why) => return Err(Exit::Terminated(why)),
            hv::Exit::Shutdown => return Err(Exit::TripleFault),
            hv::Exit::Failed(why) => return Err(Exit::Internal(why)),
        }
    }
}
