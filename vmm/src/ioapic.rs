//! The I/O APIC in user space (Intel 82093AA datasheet, version register 0x11): 24 pins.
//!
//! It turns edges on its pins into message-signalled interrupts for the local APICs. Every line of the machine
//! is declared edge-triggered by the tables that the boot stub makes, so pins know edges only: the trigger
//! mode and polarity that the guest writes are stored and shown, but messages are always edge-triggered,
//! Remote IRR always reads as zero, and there is no EOI to wait for. An edge on a masked pin is remembered
//! (once) and delivered when the pin is unmasked.
//!
//! Fixed, lowest-priority and NMI delivery are passed on. The other modes (SMI, INIT, ExtINT) belong to
//! chipset parts that this machine does not have, and are dropped, as are fixed vectors below 16.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use launch::layout::IOAPIC_PINS;

use crate::virtio::InterruptLine;

/// Where messages go: the hypervisor's local APICs.
pub trait MsiSink: Send + Sync {
    /// Delivers a message in the format of the Intel SDM, volume 3, section 11.11.
    fn send(&self, address: u64, data: u32);
}

const PINS: usize = IOAPIC_PINS as usize;

/// Offset of the register that selects.
const SELECT: u64 = 0x00;
/// Offset of the register that shows what is selected.
const WINDOW: u64 = 0x10;

const REGISTER_ID: u8 = 0x00;
const REGISTER_VERSION: u8 = 0x01;
const REGISTER_ARBITRATION: u8 = 0x02;
const REGISTER_TABLE: u8 = 0x10;

/// Version 0x11 and, in bits 16 to 23, the index of the last pin.
const VERSION: u32 = 0x11 | (IOAPIC_PINS - 1) << 16;
/// Bits of the ID register that exist.
const ID_MASK: u32 = 0x0F00_0000;

const VECTOR_MASK: u32 = 0xFF;
const DELIVERY_SHIFT: u32 = 8;
const DELIVERY_MASK: u32 = 0x7;
const LOGICAL: u32 = 1 << 11;
const MASKED: u32 = 1 << 16;
/// Vector, delivery mode, destination mode, polarity, trigger mode and mask; the rest is read-only or reserved.
const LOW_WRITABLE: u32 = 0x0001_AFFF;
/// The destination.
const HIGH_WRITABLE: u32 = 0xFF00_0000;

const FIXED: u32 = 0;
const LOWEST_PRIORITY: u32 = 1;
const NMI: u32 = 4;
/// Vectors below are reserved for exceptions.
const FIRST_VECTOR: u32 = 16;

const MSI_ADDRESS: u64 = 0xFEE0_0000;
const MSI_DESTINATION_SHIFT: u32 = 12;
const MSI_LOGICAL: u64 = 1 << 2;

#[derive(Debug, Clone, Copy)]
struct Pin {
    low: u32,
    high: u32,
    pending: bool,
}

struct State {
    select: u8,
    id: u32,
    pins: [Pin; PINS],
}

/// The device.
pub struct IoApic {
    sink: Arc<dyn MsiSink>,
    state: Mutex<State>,
}

impl IoApic {
    /// An I/O APIC after reset: all pins masked.
    #[must_use]
    pub fn new(sink: Arc<dyn MsiSink>) -> Self {
        let pin = Pin { low: MASKED, high: 0, pending: false };
        Self { sink, state: Mutex::new(State { select: 0, id: 0, pins: [pin; PINS] }) }
    }

    /// The line that ends at `pin`; `None` if there is no such pin.
    #[must_use]
    pub fn line(self: &Arc<Self>, pin: u32) -> Option<Arc<dyn InterruptLine>> {
        let pin = usize::try_from(pin).ok().filter(|&pin| pin < PINS)?;
        Some(Arc::new(Line { apic: Arc::clone(self), pin }))
    }

    /// Answers a guest's read at `offset` from the base. Only 32-bit reads of the two registers have a value.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        let state = self.lock();
        *data = match offset {
            SELECT => u32::from(state.select),
            WINDOW => state.read(),
            _ => 0,
        }
        .to_le_bytes();
    }

    /// Obeys a guest's write at `offset` from the base. Only 32-bit writes to the two registers have an effect.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let Ok(data) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let mut state = self.lock();
        match offset {
            SELECT => [state.select, ..] = data,
            WINDOW => {
                let unmasked = state.write(u32::from_le_bytes(data));
                let message = unmasked.and_then(Pin::take_message);
                drop(state);
                self.send(message);
            }
            _ => {}
        }
    }

    fn raise(&self, pin: usize) {
        let message = self.lock().pins.get_mut(pin).and_then(|pin| {
            pin.pending = true;
            pin.take_message()
        });
        self.send(message);
    }

    fn send(&self, message: Option<(u64, u32)>) {
        if let Some((address, data)) = message {
            self.sink.send(address, data);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Line {
    apic: Arc<IoApic>,
    pin: usize,
}

impl InterruptLine for Line {
    fn raise(&self) {
        self.apic.raise(self.pin);
    }
}

impl State {
    /// The pin, and whether its high half, that the selected register belongs to.
    fn entry(&self) -> Option<(usize, bool)> {
        let index = usize::from(self.select.checked_sub(REGISTER_TABLE)?);
        (index / 2 < PINS).then_some((index / 2, index % 2 == 1))
    }

    fn read(&self) -> u32 {
        match self.select {
            REGISTER_ID | REGISTER_ARBITRATION => self.id,
            REGISTER_VERSION => VERSION,
            _ => match self.entry().and_then(|(pin, high)| Some((self.pins.get(pin)?, high))) {
                Some((pin, true)) => pin.high,
                Some((pin, false)) => pin.low,
                None => 0,
            },
        }
    }

    /// Writes the selected register; a pin that may have something to deliver now is returned.
    fn write(&mut self, value: u32) -> Option<&mut Pin> {
        if self.select == REGISTER_ID {
            self.id = value & ID_MASK;
            return None;
        }
        let (pin, high) = self.entry()?;
        let pin = self.pins.get_mut(pin)?;
        if high {
            pin.high = value & HIGH_WRITABLE;
            return None;
        }
        pin.low = value & LOW_WRITABLE;
        Some(pin)
    }
}

impl Pin {
    /// Takes what is pending, as address and data, unless the pin is masked.
    fn take_message(&mut self) -> Option<(u64, u32)> {
        if self.low & MASKED != 0 || !std::mem::take(&mut self.pending) {
            return None;
        }
        let mode = self.low >> DELIVERY_SHIFT & DELIVERY_MASK;
        let vector = self.low & VECTOR_MASK;
        match mode {
            FIXED | LOWEST_PRIORITY if vector >= FIRST_VECTOR => {}
            NMI => {}
            _ => return None,
        }
        let destination = u64::from(self.high >> 24) << MSI_DESTINATION_SHIFT;
        let logical = if self.low & LOGICAL != 0 { MSI_LOGICAL } else { 0 };
        Some((MSI_ADDRESS | destination | logical, mode << DELIVERY_SHIFT | vector))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sent(Mutex<Vec<(u64, u32)>>);

    impl MsiSink for Sent {
        fn send(&self, address: u64, data: u32) {
            self.0.lock().unwrap().push((address, data));
        }
    }

    impl Sent {
        fn take(&self) -> Vec<(u64, u32)> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    fn apic() -> (Arc<IoApic>, Arc<Sent>) {
        let sent = Arc::new(Sent::default());
        (Arc::new(IoApic::new(Arc::<Sent>::clone(&sent))), sent)
    }

    fn set(apic: &IoApic, register: u32, value: u32) {
        apic.write(SELECT, &register.to_le_bytes());
        apic.write(WINDOW, &value.to_le_bytes());
    }

    fn shown(apic: &IoApic, register: u32) -> u32 {
        let mut data = [0; 4];
        apic.write(SELECT, &register.to_le_bytes());
        apic.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn identity_and_reset_state() {
        let (apic, _) = apic();
        assert_eq!(shown(&apic, 1), 0x0017_0011);
        set(&apic, 1, u32::MAX);
        assert_eq!(shown(&apic, 1), 0x0017_0011);
        set(&apic, 0, u32::MAX);
        assert_eq!(shown(&apic, 0), 0x0F00_0000);
        assert_eq!(shown(&apic, 0x10 + 2 * 23), MASKED);
    }

    #[test]
    fn messages_carry_destination_mode_and_vector() {
        let (apic, sent) = apic();
        let line = apic.line(5).unwrap();
        set(&apic, 0x1B, 0x0300_0000);
        set(&apic, 0x1A, 0x31);
        line.raise();
        set(&apic, 0x1A, 0x0931);
        line.raise();
        set(&apic, 0x1A, 0x0400);
        line.raise();
        assert_eq!(sent.take(), [(0xFEE0_3000, 0x31), (0xFEE0_3004, 0x131), (0xFEE0_3000, 0x400)]);
    }

    #[test]
    fn level_trigger_is_shown_but_messages_are_edges() {
        let (apic, sent) = apic();
        set(&apic, 0x1A, 0xA031);
        apic.line(5).unwrap().raise();
        assert_eq!(sent.take(), [(0xFEE0_0000, 0x31)]);
        assert_eq!(shown(&apic, 0x1A), 0xA031);
    }

    #[test]
    fn an_edge_on_a_masked_pin_is_delivered_once_at_unmask() {
        let (apic, sent) = apic();
        let line = apic.line(0).unwrap();
        line.raise();
        line.raise();
        assert_eq!(sent.take(), []);
        set(&apic, 0x10, 0x20);
        assert_eq!(sent.take(), [(0xFEE0_0000, 0x20)]);
        set(&apic, 0x10, MASKED | 0x20);
        set(&apic, 0x10, 0x20);
        assert_eq!(sent.take(), []);
    }

    #[test]
    fn read_only_bits_stay_and_useless_messages_are_dropped() {
        let (apic, sent) = apic();
        let line = apic.line(1).unwrap();
        set(&apic, 0x12, 0xFFFE_FFFF);
        assert_eq!(shown(&apic, 0x12), 0xAFFF);
        for low in [0x000F, 0x0240, 0x0340, 0x0540, 0x0640, 0x0740] {
            set(&apic, 0x12, low);
            line.raise();
        }
        assert_eq!(sent.take(), []);
    }

    #[test]
    fn accesses_that_do_not_exist_have_no_effect() {
        let (apic, _) = apic();
        assert!(apic.line(24).is_none());
        set(&apic, 0x40, 0x20);
        set(&apic, 0xFF, 0x20);
        assert_eq!(shown(&apic, 0x40), 0);
        apic.write(WINDOW, &[1]);
        apic.write(u64::MAX, &[1; 4]);
        let mut wide = [7; 8];
        apic.read(WINDOW, &mut wide);
        assert_eq!(wide, [0; 8]);
    }
}
