//! What a file is, beside its name and its content.

use crate::Layers;
use crate::archive::{Archive, GNU, Header, V7, seal};

pub(crate) const LAYERS: Layers = &[
    ("nothing", Archive::new),
    ("every-kind", every_kind),
    ("owners-and-modes", owners_and_modes),
    ("times", times),
    ("attributes", attributes),
    ("attributes-nobody-stores", unstored_attributes),
    ("attributes-on-links", attributes_on_links),
    ("old-headers", old_headers),
    ("global-headers", global_headers),
    ("unknown-type", || Archive::new().entry(Header::new(b'7', "contiguous"), b"x")),
];

/// CAP_NET_RAW, permitted and effective, in the attribute's second version.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn every_kind() -> Archive {
    let device = |kind, name, device| Header { device, mode: 0o600, ..Header::new(kind, name) };
    Archive::new()
        .directory("directory/")
        .file("empty", b"")
        .file("small", b"x")
        .file("block", &[1; 4096])
        .file("more", &[2; 4097])
        .file("large", &[3; 1_000_000])
        .symlink("link", "small")
        .entry(device(b'3', "char", (4, 64)), b"")
        .entry(device(b'4', "block-device", (259, 70_000)), b"")
        .entry(device(b'3', "largest", (4095, 1_048_575)), b"")
        .entry(device(b'3', "looks-like-a-whiteout", (0, 0)), b"")
        .entry(Header::new(b'6', "pipe"), b"")
}

fn owners_and_modes() -> Archive {
    let modes = [0, 0o1, 0o400, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777];
    let archive = modes.iter().fold(Archive::new(), |archive, &mode| {
        let owned = |kind, name| Header { mode, uid: 2_097_151, gid: mode, ..Header::new(kind, name) };
        archive
            .entry(owned(b'0', format!("file-{mode:o}")), b"x")
            .entry(owned(b'5', format!("directory-{mode:o}")), b"")
            .file(&format!("directory-{mode:o}/inside"), b"x")
            .entry(Header { link: b"x".to_vec(), ..owned(b'2', format!("link-{mode:o}")) }, b"")
            .entry(owned(b'6', format!("pipe-{mode:o}")), b"")
    });
    archive.pax(&[("uid", b"4294967294"), ("gid", b"3000000000")]).file("large-owner", b"x")
}

fn times() -> Archive {
    let texts: [&[u8]; 9] = [
        b"0",
        b"1700000000",
        b"1700000000.000000001",
        b"1700000000.5",
        b"1700000000.1234567891",
        b"-1",
        b"-1.5",
        b"9223372036.854775807",
        b"99999999999",
    ];
    let archive = texts.iter().zip(0..).fold(Archive::new(), |archive, (text, number)| {
        archive
            .pax(&[("mtime", text)])
            .file(&format!("file-{number}"), b"x")
            .pax(&[("mtime", text)])
            .directory(&format!("directory-{number}"))
            .file(&format!("directory-{number}/later"), b"x")
            .pax(&[("mtime", text)])
            .symlink(&format!("link-{number}"), "x")
    });
    // Base-256: a second before 1970.
    let mut block = Header { magic: GNU, ..Header::new(b'0', "binary") }.block();
    block[136..148].fill(0xFF);
    seal(&mut block);
    archive.raw(&block)
}

/// An access list: owner, a user, group, mask, others, as `system.posix_acl_*` holds it.
fn access_list(user: u32) -> Vec<u8> {
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let entries = [
        entry(0x01, 6, u32::MAX),
        entry(0x02, 4, user),
        entry(0x04, 4, u32::MAX),
        entry(0x10, 4, u32::MAX),
        entry(0x20, 4, u32::MAX),
    ];
    [2u32.to_le_bytes().to_vec(), entries.concat()].concat()
}

fn attributes() -> Archive {
    let list = access_list(1000);
    Archive::new()
        .pax(&[("SCHILY.xattr.user.one", b"1"), ("SCHILY.xattr.user.binary", b"\0=\n\xFF")])
        .file("user", b"x")
        .pax(&[("SCHILY.xattr.user.large", &[b'v'; 3000])])
        .file("large", b"x")
        .pax(&[("SCHILY.xattr.security.capability", CAPABILITY)])
        .entry(Header { mode: 0o755, ..Header::new(b'0', "capable") }, b"x")
        .pax(&[("SCHILY.xattr.system.posix_acl_access", &list)])
        .file("listed", b"x")
        .pax(&[("SCHILY.xattr.system.posix_acl_default", &list), ("SCHILY.xattr.user.two", b"2")])
        .directory("listed-directory")
        .pax(&[("SCHILY.xattr.security.other", b"label")])
        .symlink("labelled-link", "x")
        .pax(&[("SCHILY.xattr.security.other", b"label")])
        .entry(Header::new(b'6', "labelled-pipe"), b"")
}

fn unstored_attributes() -> Archive {
    Archive::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.other", b"y"),
            ("SCHILY.xattr.user.kept", b"1"),
        ])
        .directory("forged")
        .pax(&[("SCHILY.xattr.com.apple.quarantine", b"q"), ("LIBARCHIVE.xattr.user.twice", b"MQ")])
        .file("foreign", b"x")
}

fn attributes_on_links() -> Archive {
    Archive::new()
        .pax(&[("SCHILY.xattr.security.capability", CAPABILITY), ("SCHILY.xattr.user.kept", b"1")])
        .entry(Header { mode: 0o755, ..Header::new(b'0', "capable") }, b"x")
        .pax(&[("SCHILY.xattr.security.capability", CAPABILITY)])
        .entry(Header { mode: 0o755, link: b"capable".to_vec(), ..Header::new(b'1', "described") }, b"")
        .pax(&[("SCHILY.xattr.user.first", b"1")])
        .file("plain", b"x")
        .pax(&[("SCHILY.xattr.user.second", b"2")])
        .hard_link("plain-too", "plain")
}

fn old_headers() -> Archive {
    let old = |kind, name| Header { magic: V7, ..Header::new(kind, name) };
    Archive::new()
        .entry(old(0, "directory/"), b"")
        .entry(old(0, "directory/file"), b"x")
        .entry(Header { magic: GNU, mtime: 1_700_000_000, ..Header::new(b'0', "gnu") }, b"x")
        .entry(Header { mode: 0o100_644, ..Header::new(b'0', "type-in-the-mode") }, b"x")
}

fn global_headers() -> Archive {
    let data = crate::archive::records(&[("comment", b"0123"), ("path", b"everywhere"), ("uid", b"5")]);
    Archive::new()
        .entry(Header::new(b'g', "pax_global_header"), &data)
        .file("a", b"x")
        .entry(Header::new(b'g', "pax_global_header"), &data)
        .file("b", b"x")
}
