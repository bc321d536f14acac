//! A shell script or this test binary's own thread stands in for the VMM at the other end of the socket.

use std::io::{IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::sync::mpsc::channel;

use launch::control::Exit;
use launch::plan::Tee;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::*;

fn plan() -> LaunchPlan {
    LaunchPlan {
        image: "/image".into(),
        rootfs: "/rootfs".into(),
        vcpus: 1,
        memory_mib: 128,
        tee: Tee::None,
        host_data: launch::plan::HostData::default(),
        hypervisor: launch::plan::Hypervisor::Auto,
        vsock: "/vsock".into(),
        console: None,
    }
}

fn pair_with_reader(on_event: impl FnMut(Event) + Send + 'static) -> (Arc<Shared>, OwnedFd) {
    let (ours, theirs) = socket::pair().unwrap();
    let shared = Arc::new(Shared {
        control: ours,
        waiting: Mutex::new(Some(VecDeque::new())),
        end: Mutex::new(None),
        ended: Condvar::new(),
    });
    let reader = Arc::clone(&shared);
    let child = Command::new("sleep").arg("60").spawn().unwrap();
    thread::spawn(move || reader.read_until_end(child, on_event));
    (shared, theirs)
}

fn reply(socket: &OwnedFd, message: &Message) {
    send(socket, &serde_json::to_vec(message).unwrap(), &[]).unwrap();
}

#[test]
fn files_travel_with_the_request_and_refusals_come_back() {
    let (shared, theirs) = pair_with_reader(|_| {});
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"layer").unwrap();
    let vmm = thread::spawn(move || {
        let packet = receive(&theirs).unwrap().unwrap();
        let request: Request = serde_json::from_slice(&packet.bytes).unwrap();
        assert_eq!(packet.files.len(), 1);
        reply(&theirs, &Message::Reply(Some("byte 0 is taken".into())));
        (request, theirs)
    });
    let segments = vec![Segment { offset: 0, length: 4096 }];
    let request = Request::Attach { slot: 1, at: 0, segments };
    let refused = shared.request(&request, &[file.as_fd()]).unwrap_err();
    assert!(matches!(refused, ClientError::Refused(why) if why == "byte 0 is taken"));
    assert_eq!(vmm.join().unwrap().0, request);
}

#[test]
fn a_vanished_vmm_ends_requests_and_waits() {
    let (events, seen) = channel();
    let (shared, theirs) = pair_with_reader(move |event| events.send(event).unwrap());
    reply(&theirs, &Message::Event(Event::Ended(Exit::Panic)));
    assert_eq!(seen.recv().unwrap(), Event::Ended(Exit::Panic));
    drop(theirs);
    let error = shared.request(&Request::Stop, &[]).unwrap_err();
    assert!(matches!(error, ClientError::Ended), "{error}");
}

#[test]
fn nonsense_from_the_vmm_ends_it() {
    let (shared, theirs) = pair_with_reader(|_| {});
    send(&theirs, b"{\"reply\":", &[]).unwrap();
    let mut end = lock(&shared.end);
    while end.is_none() {
        end = shared.ended.wait(end).unwrap();
    }
}

#[test]
fn a_missing_binary_is_named() {
    let error = Vmm::spawn(Path::new("/no/such/vmm"), &plan(), None, |_| {}).unwrap_err();
    assert!(error.to_string().starts_with("cannot start /no/such/vmm"), "{error}");
}

#[test]
fn the_plan_is_the_first_packet_on_standard_input() {
    // `dd` reads one packet; the process then ends, which closes the socket.
    let log = tempfile::NamedTempFile::new().unwrap();
    let script = tempfile::Builder::new().suffix(".sh").tempfile().unwrap();
    std::fs::write(script.path(), "#!/bin/sh\nexec dd bs=65536 count=1 status=none >&2\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(script.path(), mode).unwrap();
    let path = script.into_temp_path();
    let vmm = Vmm::spawn(&path, &plan(), Some(log.reopen().unwrap()), |_| {}).unwrap();
    let _status = vmm.wait();
    let seen = std::fs::read(log.path()).unwrap();
    assert_eq!(LaunchPlan::from_json(&seen).unwrap(), plan());
}

#[test]
fn a_packet_whose_files_do_not_fit_comes_without_them() {
    let (ours, theirs) = socket::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    let files = [file.as_fd(); MAX_SEGMENTS + 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SEGMENTS + 16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
    sendmsg(&ours, &[IoSlice::new(b"too many")], &mut control, SendFlags::empty()).unwrap();
    let packet = receive(&theirs).unwrap().unwrap();
    assert_eq!((&packet.bytes[..], packet.files.len(), packet.files_lost), (&b"too many"[..], 0, true));
    // The socket is as good as before.
    send(&ours, b"one", &[file.as_fd()]).unwrap();
    let packet = receive(&theirs).unwrap().unwrap();
    assert_eq!((&packet.bytes[..], packet.files.len(), packet.files_lost), (&b"one"[..], 1, false));
}

#[test]
fn the_largest_request_fits_a_packet() {
    let segments = vec![Segment { offset: u64::MAX, length: u64::MAX }; MAX_SEGMENTS];
    let json = serde_json::to_vec(&Request::Attach { slot: u32::MAX, at: u64::MAX, segments }).unwrap();
    assert!(json.len() <= launch::control::MAX_MESSAGE_BYTES, "{}", json.len());
}
