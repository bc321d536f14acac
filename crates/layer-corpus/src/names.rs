//! Names, paths, and links of both kinds.

use crate::Layers;
use crate::archive::{Archive, Header};

pub(crate) const LAYERS: Layers = &[
    ("long-and-odd-names", long_and_odd_names),
    ("untidy-paths", untidy_paths),
    ("missing-parents", missing_parents),
    ("huge-directory", huge_directory),
    ("entries-of-the-root", entries_of_the_root),
    ("symbolic-links", symbolic_links),
    ("linked-parents", linked_parents),
    ("hard-links", hard_links),
    ("hard-links-describe", hard_links_describe),
    ("above-the-root", || Archive::new().file("../above", b"x")),
    ("through-a-file", || Archive::new().file("a", b"").file("a/b", b"")),
    ("through-a-cycle", || Archive::new().symlink("a", "b").symlink("b", "a").file("a/c", b"")),
    ("hard-link-to-nothing", || Archive::new().hard_link("a", "b")),
    ("hard-link-to-a-directory", || Archive::new().directory("d").hard_link("a", "d")),
    ("name-too-long", || Archive::new().gnu_long(b'L', &[b'n'; 256]).file("x", b"")),
    ("link-without-target", || Archive::new().symlink("x", "")),
];

fn long_and_odd_names() -> Archive {
    let prefixed = Header { prefix: b"some/directory".to_vec(), ..Header::new(b'0', "name") };
    let deep = "a-rather-long-name-of-a-directory/".repeat(20) + "file";
    Archive::new()
        .file(&"n".repeat(100), b"x")
        .entry(prefixed, b"x")
        .gnu_long(b'L', &[b'g'; 255])
        .file("x", b"gnu")
        .pax(&[("path", &[b'p'; 255])])
        .file("x", b"pax")
        .pax(&[("path", deep.as_bytes())])
        .file("x", b"deep")
        .pax(&[("path", b"not \xFF utf-8\n=")])
        .file("x", b"odd")
        .entry(Header::new(b'0', b"header \xFE\xFF"), b"odd")
        .file(" ", b"a space")
        .file("\\", b"a backslash")
        .file("...", b"dots")
}

fn untidy_paths() -> Archive {
    Archive::new()
        .file("/absolute", b"1")
        .file(".//dots", b"2")
        .directory("there")
        .file("there/../beside", b"3")
        .file("there/./inside", b"4")
        .directory("there//slashes//")
        .hard_link("there/again", "/absolute")
}

fn missing_parents() -> Archive {
    Archive::new()
        .file("a/b/c", b"x")
        .entry(Header { mode: 0o700, uid: 5, ..Header::new(b'5', "a") }, b"")
        .symlink("x/y/link", "a")
        .hard_link("p/q/hard", "a/b/c")
        .directory("r/s/t")
}

fn huge_directory() -> Archive {
    (0..3000).fold(Archive::new().directory("many"), |archive, number| {
        archive.file(&format!("many/{number:05}"), format!("{number}").as_bytes())
    })
}

fn entries_of_the_root() -> Archive {
    let root = |name| Header { mode: 0o700, uid: 7, ..Header::new(b'5', name) };
    Archive::new().entry(root("./"), b"").file("a", b"x").entry(root("/"), b"")
}

fn symbolic_links() -> Archive {
    let lengths = [1, 2, 31, 32, 59, 60, 99, 100, 101, 1023, 3999, 4000, 4064, 4094, 4095];
    let archive = lengths.iter().fold(Archive::new(), |archive, &length| {
        archive.gnu_long(b'K', &vec![b't'; length]).symlink(&format!("length-{length}"), "x")
    });
    archive
        .symlink("untidy", "/a/very/../odd//target/")
        .symlink("up", "../../../..")
        .pax(&[("linkpath", b"\xFF\n")])
        .symlink("odd", "x")
}

fn linked_parents() -> Archive {
    Archive::new()
        .directory("usr")
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/relative", b"1")
        .symlink("absolute", "/usr/lib")
        .file("absolute/file", b"2")
        .symlink("up", "../../../usr")
        .file("up/above", b"3")
        .hard_link("lib/again", "lib/relative")
        .hard_link("lib/third", "usr/lib/relative")
}

fn hard_links() -> Archive {
    let device = Header { device: (1, 3), ..Header::new(b'3', "device") };
    Archive::new()
        .directory("d")
        .file("file", b"content")
        .hard_link("d/second", "file")
        .hard_link("third", "d/second")
        .file("empty", b"")
        .hard_link("empty-too", "empty")
        .symlink("link", "file")
        .hard_link("link-too", "link")
        .entry(device, b"")
        .hard_link("device-too", "device")
        .entry(Header::new(b'6', "pipe"), b"")
        .hard_link("pipe-too", "pipe")
        .file("outlived", b"old")
        .hard_link("survivor", "outlived")
        .file("outlived", b"new")
}

/// The entry of a second name has other metadata than the first one's.
fn hard_links_describe() -> Archive {
    let link =
        Header { link: b"a".to_vec(), mode: 0o400, uid: 9, gid: 8, mtime: 8, ..Header::new(b'1', "b") };
    Archive::new().file("a", b"x").entry(link, b"")
}
