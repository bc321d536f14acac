//! What of an entry's attributes a layer keeps.

use erofs_verity::tree::{Kind, Metadata, Timestamp, Xattrs};

use crate::tar::Entry;

/// The attribute by which overlayfs knows an opaque directory, and its value.
pub(super) const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

/// Last time that containerd gives to a file: 2^63 - 1 nanoseconds after 1970, in the year 2262.
const MAX_TIME: Timestamp = Timestamp { seconds: 9_223_372_036, nanoseconds: 854_775_807 };

/// A directory that no entry describes.
pub(super) fn implied_directory() -> Metadata {
    Metadata { permissions: 0o755, ..Metadata::default() }
}

/// The metadata that `entry` gives to a node of `kind` which has had `xattrs`.
pub(super) fn metadata(entry: &Entry, kind: &Kind, xattrs: Xattrs) -> Metadata {
    let mut xattrs = xattrs;
    let given = entry.xattrs.iter().filter(|(name, _)| is_kept(name, kind));
    xattrs.extend(given.map(|(name, value)| (name.clone(), value.clone())));
    Metadata {
        // Linux shows no other permissions of a symbolic link.
        permissions: if matches!(kind, Kind::Symlink(_)) { 0o777 } else { entry.permissions },
        uid: entry.uid,
        gid: entry.gid,
        mtime: bounded(entry.mtime),
        xattrs,
    }
}

/// The time that containerd gives to a file: times before 1970 and after 2262 become 1970.
fn bounded(time: Timestamp) -> Timestamp {
    let is_late = (time.seconds, time.nanoseconds) > (MAX_TIME.seconds, MAX_TIME.nanoseconds);
    if time.seconds < 0 || is_late { Timestamp::default() } else { time }
}

/// Whether a node of `kind` keeps the attribute.
///
/// As with containerd, `trusted.*` never comes out of an archive: its names steer overlayfs, and an image
/// that could write `trusted.overlay.redirect` would reach into directories of other layers. What Linux would
/// not store, because of the name's prefix or the file's type, is left out as containerd leaves it out.
fn is_kept(name: &[u8], kind: &Kind) -> bool {
    let is_file = matches!(kind, Kind::Regular { .. });
    let is_directory = matches!(kind, Kind::Directory);
    match name {
        b"system.posix_acl_default" => is_directory,
        b"system.posix_acl_access" => !matches!(kind, Kind::Symlink(_)),
        _ if name.starts_with(b"security.") => true,
        _ if name.starts_with(b"user.") => is_file || is_directory,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outside_containerds_range_become_zero() {
        let time = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
        for (given, kept) in [
            (time(1_700_000_000, 5), time(1_700_000_000, 5)),
            (time(-1, 999_999_999), time(0, 0)),
            (MAX_TIME, MAX_TIME),
            (time(9_223_372_036, 854_775_808), time(0, 0)),
            (time(i64::MAX, 0), time(0, 0)),
        ] {
            assert_eq!(bounded(given), kept, "{given:?}");
        }
    }

    #[test]
    fn attributes_are_kept_where_linux_would_store_them() {
        let fifo = Kind::Fifo;
        let link = Kind::Symlink(b"x".to_vec());
        let directory = Kind::Directory;
        for (name, kind, kept) in [
            (&b"security.capability"[..], &fifo, true),
            (b"user.a", &directory, true),
            (b"user.a", &fifo, false),
            (b"user.a", &link, false),
            (b"system.posix_acl_access", &fifo, true),
            (b"system.posix_acl_access", &link, false),
            (b"system.posix_acl_default", &directory, true),
            (b"system.posix_acl_default", &fifo, false),
            (b"trusted.overlay.redirect", &directory, false),
            (b"trusted.overlay.opaque", &directory, false),
            (b"trusted.a", &directory, false),
            (b"system.other", &directory, false),
            (b"com.apple.quarantine", &directory, false),
        ] {
            assert_eq!(is_kept(name, kind), kept, "{} on {kind:?}", name.escape_ascii());
        }
    }
}
