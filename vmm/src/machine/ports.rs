//! The machine's I/O ports: what the boot stub says, power-off, reset, panic, a debug image's console, and a
//! simulated launch's reports.
//!
//! Everything that is written here comes from the guest. It can end its machine and name a reason; nothing
//! more.

use std::io::Write;

use boot_abi::{REFUSAL_MAX, StubPort};
use launch::control::{Exit, Mark};
use launch::layout::{
    PORT_PVPANIC, PORT_RESET, PORT_SERIAL, PORT_SLEEP_CONTROL, PORT_SLEEP_STATUS, PORT_STUB,
};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use super::sim::ReportDevice;

/// Sleep enable, in the sleep control register (ACPI 6.5, section 4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;
/// The event that pvpanic reports (QEMU `docs/specs/pvpanic`).
const PVPANIC_PANICKED: u8 = 1;
/// What a port without a device reads as.
const NOTHING: u8 = 0xFF;
const SERIAL_PORTS: std::ops::Range<u16> = PORT_SERIAL..PORT_SERIAL + 8;

/// What a write to a port means to the machine.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing beyond the port.
    None,
    /// A step of the boot.
    Reached(Mark),
    /// The end.
    End(Exit),
}

type Console<T> = Serial<T, NoEvents, Box<dyn Write + Send>>;

/// The ports of one machine.
pub struct Ports<T: Trigger> {
    refusal: Option<Vec<u8>>,
    /// The last step that the stub has reported: each is passed on once, however often the guest writes it.
    reached: Option<Mark>,
    console: Option<Console<T>>,
    reports: Option<ReportDevice>,
}

impl<T: Trigger> std::fmt::Debug for Ports<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").field("console", &self.console.is_some()).finish_non_exhaustive()
    }
}

impl<T: Trigger> Ports<T> {
    /// Ports with a console, if the machine is to have one: its interrupt line and where its output goes.
    pub fn new(console: Option<(T, Box<dyn Write + Send>)>) -> Self {
        let console = console.map(|(line, out)| Serial::new(line, out));
        Self { refusal: None, reached: None, console, reports: None }
    }

    /// Adds the report device of a simulated launch.
    pub fn add_reports(&mut self, device: ReportDevice) {
        self.reports = Some(device);
    }

    /// Handles a write. Bytes have a meaning, and words of 32 bits for the report device.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Effect {
        if let (Some(device), &[a, b, c, d], true) = (&mut self.reports, data, ReportDevice::has(port)) {
            device.write(port, u32::from_le_bytes([a, b, c, d]));
            return Effect::None;
        }
        let &[byte] = data else { return Effect::None };
        match port {
            PORT_STUB => self.stub(byte),
            PORT_SLEEP_CONTROL if byte & SLEEP_ENABLE != 0 => Effect::End(Exit::PowerOff),
            PORT_RESET => Effect::End(Exit::Reset),
            PORT_PVPANIC if byte & PVPANIC_PANICKED != 0 => Effect::End(Exit::Panic),
            port if SERIAL_PORTS.contains(&port) => {
                if let Some((console, offset)) = self.serial(port) {
                    // A console that cannot be written to is no reason to stop a machine.
                    let _ = console.write(offset, byte);
                }
                Effect::None
            }
            _ => Effect::None,
        }
    }

    /// Handles a read.
    pub fn read(&mut self, port: u16, data: &mut [u8]) {
        data.fill(NOTHING);
        if let (Some(device), 4, true) = (&mut self.reports, data.len(), ReportDevice::has(port)) {
            data.copy_from_slice(&device.read(port).to_le_bytes());
            return;
        }
        let [byte] = data else { return };
        match port {
            PORT_SLEEP_STATUS => *byte = 0,
            PORT_PVPANIC => *byte = PVPANIC_PANICKED,
            port => {
                if let Some((console, offset)) = self.serial(port) {
                    *byte = console.read(offset);
                }
            }
        }
    }

    fn serial(&mut self, port: u16) -> Option<(&mut Console<T>, u8)> {
        let offset = u8::try_from(port.checked_sub(PORT_SERIAL)?).ok()?;
        SERIAL_PORTS.contains(&port).then_some(())?;
        Some((self.console.as_mut()?, offset))
    }

    fn reach(&mut self, mark: Mark) -> Effect {
        if self.reached.is_some_and(|last| last >= mark) {
            return Effect::None;
        }
        self.reached = Some(mark);
        Effect::Reached(mark)
    }

    fn stub(&mut self, byte: u8) -> Effect {
        const END: u8 = StubPort::End as u8;
        const STARTED: u8 = StubPort::Started as u8;
        const COPIED: u8 = StubPort::Copied as u8;
        const KERNEL_ENTRY: u8 = StubPort::KernelEntry as u8;
        const REFUSED: u8 = StubPort::Refused as u8;
        match (&mut self.refusal, byte) {
            (Some(text), END) => Effect::End(Exit::StubRefused(printable(text))),
            (Some(text), _) => {
                if text.len() < REFUSAL_MAX {
                    text.push(byte);
                }
                Effect::None
            }
            (None, STARTED) => self.reach(Mark::Stub),
            (None, COPIED) => self.reach(Mark::Copied),
            (None, KERNEL_ENTRY) => self.reach(Mark::KernelEntry),
            (None, REFUSED) => {
                self.refusal = Some(Vec::new());
                Effect::None
            }
            (None, _) => Effect::None,
        }
    }
}

/// The guest's words, without anything that a terminal would act on.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoLine;

    impl Trigger for NoLine {
        type E = std::io::Error;
        fn trigger(&self) -> Result<(), Self::E> {
            Ok(())
        }
    }

    fn ports() -> Ports<NoLine> {
        Ports::new(None)
    }

    #[test]
    fn a_refusal_is_bounded_and_made_printable() {
        let mut ports = ports();
        assert_eq!(ports.write(PORT_STUB, &[StubPort::Refused as u8]), Effect::None);
        for byte in b"no \x1b[2J".iter().chain([b'x'; 1000].iter()) {
            assert_eq!(ports.write(PORT_STUB, &[*byte]), Effect::None);
        }
        let Effect::End(Exit::StubRefused(text)) = ports.write(PORT_STUB, &[0]) else { panic!() };
        assert!(text.starts_with("no ?[2Jxx"));
        assert_eq!(text.len(), REFUSAL_MAX);
    }

    #[test]
    fn each_step_is_reported_once() {
        let mut ports = ports();
        let (started, entered) = ([StubPort::Started as u8], [StubPort::KernelEntry as u8]);
        let copied = [StubPort::Copied as u8];
        assert_eq!(ports.write(PORT_STUB, &started), Effect::Reached(Mark::Stub));
        assert_eq!(ports.write(PORT_STUB, &started), Effect::None);
        assert_eq!(ports.write(PORT_STUB, &copied), Effect::Reached(Mark::Copied));
        assert_eq!(ports.write(PORT_STUB, &copied), Effect::None);
        assert_eq!(ports.write(PORT_STUB, &entered), Effect::Reached(Mark::KernelEntry));
        assert_eq!(ports.write(PORT_STUB, &copied), Effect::None);
        assert_eq!(ports.write(PORT_STUB, &started), Effect::None);
        assert_eq!(ports.write(PORT_STUB, &entered), Effect::None);
    }

    #[test]
    fn ends_are_told_apart() {
        assert_eq!(ports().write(PORT_SLEEP_CONTROL, &[0x34]), Effect::End(Exit::PowerOff));
        assert_eq!(ports().write(PORT_SLEEP_CONTROL, &[0]), Effect::None);
        assert_eq!(ports().write(PORT_RESET, &[1]), Effect::End(Exit::Reset));
        assert_eq!(ports().write(PORT_PVPANIC, &[1]), Effect::End(Exit::Panic));
        assert_eq!(ports().write(PORT_PVPANIC, &[2]), Effect::None);
        assert_eq!(ports().write(PORT_RESET, &[1, 0]), Effect::None);
    }

    #[test]
    fn ports_without_a_device_read_as_ones() {
        let mut word = [0; 2];
        ports().read(0x80, &mut word);
        assert_eq!(word, [0xFF; 2]);
        let mut byte = [0];
        ports().read(PORT_SERIAL, &mut byte);
        assert_eq!(byte, [0xFF]);
        ports().read(PORT_PVPANIC, &mut byte);
        assert_eq!(byte, [1]);
    }
}
