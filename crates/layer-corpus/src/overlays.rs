//! Entries that meet others: of the same path, and of lower layers.

use crate::Layers;
use crate::archive::{Archive, Header};

pub(crate) const LAYERS: Layers = &[
    ("several-entries", several_entries),
    ("directory-over-directory", directory_over_directory),
    ("whiteouts", whiteouts),
    ("opaque-directories", opaque_directories),
    ("opaque-root", || Archive::new().file(".wh..wh..opq", b"").file("a", b"x")),
    ("books-of-aufs", books_of_aufs),
    ("whiteout-and-file", || Archive::new().file(".wh.a", b"").file("a", b"x")),
    ("file-and-whiteout", || Archive::new().file("a", b"x").file(".wh.a", b"")),
    ("whiteout-and-directory", || Archive::new().file(".wh.a", b"").directory("a").file("a/b", b"x")),
    ("directory-and-whiteout", || Archive::new().directory("a").file("a/b", b"x").file(".wh.a", b"")),
    ("whiteout-of-nothing", || Archive::new().file(".wh.", b"")),
];

fn several_entries() -> Archive {
    Archive::new()
        .file("file", b"old")
        .symlink("file", "x")
        .file("file", b"new")
        .file("was-a-directory/inside", b"x")
        .file("was-a-directory", b"y")
        .file("was-a-file", b"y")
        .directory("was-a-file")
        .file("was-a-file/inside", b"x")
        .directory("back")
        .file("back", b"x")
        .directory("back")
        .symlink("was-a-link", "back")
        .directory("was-a-link")
}

fn directory_over_directory() -> Archive {
    Archive::new()
        .pax(&[("SCHILY.xattr.user.one", b"1")])
        .directory("a")
        .file("a/b", b"x")
        .pax(&[("SCHILY.xattr.user.two", b"2")])
        .entry(Header { mode: 0o711, uid: 3, mtime: 9, ..Header::new(b'5', "a") }, b"")
}

fn whiteouts() -> Archive {
    Archive::new()
        .directory("a")
        .file("a/.wh.gone", b"")
        .entry(Header { uid: 5, gid: 6, mtime: 7, ..Header::new(b'0', ".wh.owned") }, b"data of a whiteout")
        .file("only-implied/.wh.gone", b"")
}

fn opaque_directories() -> Archive {
    Archive::new()
        .directory("before")
        .file("before/.wh..wh..opq", b"")
        .file("before/a", b"x")
        .file("only-implied/.wh..wh..opq", b"")
        .file("only-implied/a", b"x")
}

fn books_of_aufs() -> Archive {
    Archive::new().file(".wh..wh.aufs", b"").directory(".wh..wh.plnk").file("a", b"x")
}
