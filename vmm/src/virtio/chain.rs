//! The one way in which devices read descriptors.
//!
//! [`Chain::load`] walks a descriptor chain once (each descriptor is fetched once, so the guest cannot change
//! it between check and use) and refuses everything that virtio 1.2 section 2.7 forbids a driver to do:
//! loops, chains longer than the queue, nested or misplaced indirect tables, device-readable buffers behind
//! device-writable ones, buffers outside of memory, and more bytes than the device takes. What it accepts can
//! be read and written by byte offset, however the driver has cut it into buffers (section 2.7.4).

use virtio_queue::DescriptorChain;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, VolatileMemoryError, VolatileSlice,
};

/// Why a chain is refused.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The head is not in the table, or the indirect table that it names cannot be used.
    #[error("descriptor chain {head}: expected at least one buffer, found none that can be used")]
    Empty {
        /// Index of the chain's first descriptor.
        head: u16,
    },
    /// A loop, a link out of the table, a table outside of memory, or a misplaced indirect table.
    #[error(
        "descriptor chain {head}: expected its end after buffer {count}, found a link that leads nowhere"
    )]
    Broken {
        /// Index of the chain's first descriptor.
        head: u16,
        /// Buffers that were found.
        count: usize,
    },
    /// More buffers than the queue has descriptors.
    #[error("descriptor chain {head}: expected at most {max} buffers, found more")]
    TooManyBuffers {
        /// Index of the chain's first descriptor.
        head: u16,
        /// The queue's size.
        max: u16,
    },
    /// More bytes than the device takes.
    #[error("descriptor chain {head}: expected at most {max} bytes, found more")]
    TooLong {
        /// Index of the chain's first descriptor.
        head: u16,
        /// The device's limit.
        max: u32,
    },
    /// A device-readable buffer behind a device-writable one.
    #[error("descriptor chain {head}: expected no readable buffer behind writable ones, found one")]
    Order {
        /// Index of the chain's first descriptor.
        head: u16,
    },
    /// A buffer outside of memory.
    #[error("descriptor chain {head}: expected buffers inside memory, found {length} bytes at {address:#x}")]
    OutsideMemory {
        /// Index of the chain's first descriptor.
        head: u16,
        /// Guest-physical address of the buffer.
        address: u64,
        /// Its bytes.
        length: u32,
    },
    /// The device needs more bytes than the chain has.
    #[error(
        "descriptor chain {head}: expected {wanted} {part} bytes at offset {offset}, found {found} in all"
    )]
    TooShort {
        /// Index of the chain's first descriptor.
        head: u16,
        /// Which bytes.
        part: Part,
        /// Where they were to begin.
        offset: u32,
        /// How many were wanted.
        wanted: u32,
        /// How many the part has.
        found: u32,
    },
    /// Memory that was checked cannot be accessed.
    #[error("guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// Memory that was checked cannot be accessed.
    #[error("guest memory: {0}")]
    Volatile(#[from] VolatileMemoryError),
}

/// The two parts of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What the device reads.
    Readable,
    /// What the device writes.
    Writable,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Readable => "readable",
            Self::Writable => "writable",
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Buffer {
    address: GuestAddress,
    length: u32,
}

/// A checked descriptor chain. Loading the next one into it reuses its memory.
#[derive(Debug)]
pub struct Chain {
    max_bytes: u32,
    head: u16,
    buffers: Vec<Buffer>,
    first_writable: usize,
    readable_len: u32,
    writable_len: u32,
}

impl Chain {
    /// An empty chain that takes at most `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: u32) -> Self {
        Self { max_bytes, head: 0, buffers: Vec::new(), first_writable: 0, readable_len: 0, writable_len: 0 }
    }

    /// Reads and checks `descriptors`, of a queue of `queue_size`.
    ///
    /// # Errors
    /// When the driver has broken a rule; nothing of the chain may be used then.
    pub fn load(
        &mut self,
        memory: &GuestMemoryMmap,
        mut descriptors: DescriptorChain<&GuestMemoryMmap>,
        queue_size: u16,
    ) -> Result<(), ChainError> {
        let head = descriptors.head_index();
        self.clear(head);
        let mut more = false;
        // The iterator stops without a word at whatever it cannot follow; the last link tells it from an end.
        for descriptor in descriptors.by_ref() {
            if self.buffers.len() >= usize::from(queue_size) {
                return Err(ChainError::TooManyBuffers { head, max: queue_size });
            }
            let buffer = Buffer { address: descriptor.addr(), length: descriptor.len() };
            self.push(memory, buffer, descriptor.is_write_only())?;
            more = descriptor.has_next();
        }
        match self.buffers.len() {
            0 => Err(ChainError::Empty { head }),
            count if more => Err(ChainError::Broken { head, count }),
            _ => Ok(()),
        }
    }

    fn clear(&mut self, head: u16) {
        self.head = head;
        self.buffers.clear();
        self.first_writable = 0;
        self.readable_len = 0;
        self.writable_len = 0;
    }

    fn push(&mut self, memory: &GuestMemoryMmap, buffer: Buffer, writable: bool) -> Result<(), ChainError> {
        let head = self.head;
        let Buffer { address, length } = buffer;
        if !writable && self.first_writable < self.buffers.len() {
            return Err(ChainError::Order { head });
        }
        let total = self.readable_len.checked_add(self.writable_len).and_then(|sum| sum.checked_add(length));
        if total.is_none_or(|total| total > self.max_bytes) {
            return Err(ChainError::TooLong { head, max: self.max_bytes });
        }
        if !in_memory(memory, address, length) {
            return Err(ChainError::OutsideMemory { head, address: address.0, length });
        }
        self.buffers.push(buffer);
        if writable {
            self.writable_len += length;
        } else {
            self.readable_len += length;
            self.first_writable = self.buffers.len();
        }
        Ok(())
    }

    /// Address and length of each buffer.
    pub(super) fn buffers(&self) -> impl Iterator<Item = (u64, u64)> {
        self.buffers.iter().map(|buffer| (buffer.address.0, u64::from(buffer.length)))
    }

    /// Index of the first descriptor, by which the driver knows the chain.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device may read or write.
    #[must_use]
    pub fn len(&self, part: Part) -> u32 {
        match part {
            Part::Readable => self.readable_len,
            Part::Writable => self.writable_len,
        }
    }

    /// Whether a part has no bytes.
    #[must_use]
    pub fn is_empty(&self, part: Part) -> bool {
        self.len(part) == 0
    }

    /// The memory of `length` bytes of a part, from byte `offset` of the part on.
    ///
    /// # Errors
    /// When the part has fewer bytes.
    pub fn slices<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        part: Part,
        offset: u32,
        length: u32,
    ) -> Result<impl Iterator<Item = Result<VolatileSlice<'m>, GuestMemoryError>>, ChainError> {
        let found = self.len(part);
        if offset.checked_add(length).is_none_or(|end| end > found) {
            return Err(ChainError::TooShort { head: self.head, part, offset, wanted: length, found });
        }
        let (readable, writable) = self.buffers.split_at(self.first_writable);
        let buffers = if part == Part::Readable { readable } else { writable };
        let cut = buffers.iter().scan((offset, length), |(skip, left), buffer| {
            let skipped = (*skip).min(buffer.length);
            let taken = (buffer.length - skipped).min(*left);
            *skip -= skipped;
            *left -= taken;
            Some((GuestAddress(buffer.address.0.wrapping_add(u64::from(skipped))), taken))
        });
        Ok(cut
            .filter(|&(_, taken)| taken > 0)
            .flat_map(|(address, taken)| memory.get_slices(address, widen(taken))))
    }

    /// Copies from the readable part.
    ///
    /// # Errors
    /// When the part has fewer bytes.
    pub fn read(&self, memory: &GuestMemoryMmap, offset: u32, to: &mut [u8]) -> Result<(), ChainError> {
        let length = u32::try_from(to.len()).unwrap_or(u32::MAX);
        let mut rest = to;
        for slice in self.slices(memory, Part::Readable, offset, length)? {
            let copied = slice?.copy_to(rest);
            rest = rest.split_at_mut(copied).1;
        }
        Ok(())
    }

    /// Copies to the writable part.
    ///
    /// # Errors
    /// When the part has fewer bytes.
    pub fn write(&self, memory: &GuestMemoryMmap, offset: u32, from: &[u8]) -> Result<(), ChainError> {
        let length = u32::try_from(from.len()).unwrap_or(u32::MAX);
        let mut rest = from;
        for slice in self.slices(memory, Part::Writable, offset, length)? {
            let slice = slice?;
            let (now, later) = rest.split_at(slice.len().min(rest.len()));
            slice.copy_from(now);
            rest = later;
        }
        Ok(())
    }
}

/// Whether `length` bytes at `address` are memory, the last byte included and nothing wrapping around.
fn in_memory(memory: &GuestMemoryMmap, address: GuestAddress, length: u32) -> bool {
    address.0.checked_add(u64::from(length)).is_some() && memory.check_range(address, widen(length))
}

const fn widen(length: u32) -> usize {
    const { assert!(usize::BITS >= u32::BITS) };
    length as usize
}
