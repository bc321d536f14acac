//! Packets with descriptors over a `SOCK_SEQPACKET` Unix socket (unix(7)).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use launch::control::{MAX_MESSAGE_BYTES, MAX_SEGMENTS};
use launch::plan::MAX_PLAN_BYTES;
use rustix::io::{Errno, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// One message with the descriptors that came along.
#[derive(Debug)]
pub struct Packet {
    /// The message.
    pub bytes: Vec<u8>,
    /// Descriptors, in the sender's order.
    pub files: Vec<OwnedFd>,
    /// Whether descriptors came along that this process could not take: it has as many open as it may, or they
    /// were more than [`MAX_SEGMENTS`]. Then `files` is empty.
    pub files_lost: bool,
}

/// The longest packet that is taken.
const MAX_PACKET_BYTES: usize =
    if MAX_PLAN_BYTES > MAX_MESSAGE_BYTES { MAX_PLAN_BYTES } else { MAX_MESSAGE_BYTES };

pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends one packet.
///
/// # Errors
/// What sendmsg(2) says; `EPIPE` when the peer has gone.
pub fn send(socket: impl AsFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SEGMENTS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(Errno::TOOMANYREFS);
    }
    rustix::io::retry_on_intr(|| {
        sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives one packet; `None` when the peer has closed its side.
///
/// # Errors
/// What recvmsg(2) says; `EMSGSIZE` when the packet does not fit.
pub fn receive(socket: impl AsFd) -> Result<Option<Packet>> {
    let mut bytes = vec![0; MAX_PACKET_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SEGMENTS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut files: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(Errno::MSGSIZE);
    }
    let files_lost = received.flags.contains(ReturnFlags::CTRUNC);
    if files_lost {
        files.clear();
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    bytes.shrink_to_fit();
    Ok(Some(Packet { bytes, files, files_lost }))
}
