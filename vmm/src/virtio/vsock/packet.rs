//! The header of a vsock packet (virtio 1.2, section 5.10.6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The host's context identifier.
pub const HOST_CID: u64 = 2;
/// Bytes of a header.
pub const HEADER_BYTES: u32 = 44;
/// Most bytes of payload in one packet.
pub const MAX_PAYLOAD: u32 = 64 * 1024;

/// The sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// `VIRTIO_VSOCK_TYPE_STREAM`, the only kind of socket here.
const STREAM: u16 = 1;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Asks for a connection.
    Request,
    /// Accepts one.
    Response,
    /// Refuses or ends one at once.
    Reset,
    /// Ends one direction or both.
    Shutdown,
    /// Carries data.
    Data,
    /// Only brings the credit fields up to date.
    CreditUpdate,
    /// Asks for a credit update.
    CreditRequest,
}

impl Op {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    fn from_wire(value: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.to_wire() == value)
    }

    const fn to_wire(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// `struct virtio_vsock_hdr`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireHeader {
    src_cid: U64,
    dst_cid: U64,
    src_port: U32,
    dst_port: U32,
    len: U32,
    kind: U16,
    op: U16,
    flags: U32,
    buf_alloc: U32,
    fwd_cnt: U32,
}

/// A header on the wire.
pub type HeaderBytes = [u8; HEADER_BYTES as usize];

const _: () = assert!(size_of::<WireHeader>() == size_of::<HeaderBytes>());

/// A connection, as both sides know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    /// On the host's side.
    pub host: u32,
    /// On the guest's side.
    pub guest: u32,
}

/// What a packet says, besides whom it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// What it is for.
    pub op: Op,
    /// Bytes of payload.
    pub len: u32,
    /// For [`Op::Shutdown`]: which directions end.
    pub flags: u32,
    /// Bytes that the sender can buffer for this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that buffer, modulo 2^32.
    pub fwd_cnt: u32,
}

/// What became of a header from the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A packet for the connection between these ports.
    Packet(Ports, Packet),
    /// Of no use, but from an honest address: it is answered by a reset.
    Unsupported(Ports),
    /// Not from the guest or not for the host: dropped.
    Foreign,
}

/// Reads a header that the guest with `guest_cid` has sent.
#[must_use]
pub fn parse(bytes: HeaderBytes, guest_cid: u64) -> Parsed {
    let header: WireHeader = zerocopy::transmute!(bytes);
    if header.src_cid.get() != guest_cid || header.dst_cid.get() != HOST_CID {
        return Parsed::Foreign;
    }
    let ports = Ports { host: header.dst_port.get(), guest: header.src_port.get() };
    match Op::from_wire(header.op.get()) {
        Some(op) if header.kind.get() == STREAM => {
            let packet = Packet {
                op,
                len: header.len.get(),
                flags: header.flags.get(),
                buf_alloc: header.buf_alloc.get(),
                fwd_cnt: header.fwd_cnt.get(),
            };
            Parsed::Packet(ports, packet)
        }
        _ => Parsed::Unsupported(ports),
    }
}

/// The header of a packet to the guest with `guest_cid`.
#[must_use]
pub fn encode(ports: Ports, packet: Packet, guest_cid: u64) -> HeaderBytes {
    let header = WireHeader {
        src_cid: HOST_CID.into(),
        dst_cid: guest_cid.into(),
        src_port: ports.host.into(),
        dst_port: ports.guest.into(),
        len: packet.len.into(),
        kind: STREAM.into(),
        op: packet.op.to_wire().into(),
        flags: packet.flags.into(),
        buf_alloc: packet.buf_alloc.into(),
        fwd_cnt: packet.fwd_cnt.into(),
    };
    zerocopy::transmute!(header)
}
