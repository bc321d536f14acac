//! The OCI image specification's rules, entry by entry.

use layer_corpus::archive::{Archive, Header};
use oci_layer::Limits;

use crate::layer::{listing, listing_within};

const ROOT: &str = "d 755 0:0 0 /";

#[track_caller]
fn becomes(archive: Archive, expected: &[&str]) {
    let expected: Vec<&str> = [ROOT].iter().chain(expected).copied().collect();
    assert_eq!(listing(&archive.finish()).unwrap(), expected);
}

#[track_caller]
fn is_refused(archive: Archive, message: &str) {
    let error = listing(&archive.finish()).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn every_kind_of_file_keeps_what_it_has() {
    let device = |kind, name| Header { device: (5, 300), mode: 0o600, ..Header::new(kind, name) };
    let setuid =
        Header { mode: 0o104_755, uid: 12, gid: 34, mtime: 1_700_000_000, ..Header::new(b'0', "su") };
    let archive = Archive::new()
        .entry(Header { mode: 0o1777, ..Header::new(b'5', "tmp/") }, &[])
        .entry(setuid, b"hello")
        .file("empty", b"")
        .symlink("link", "/a/very/../odd//target")
        .entry(device(b'3', "char"), &[])
        .entry(device(b'4', "block"), &[])
        .entry(Header::new(b'6', "pipe"), &[]);
    becomes(
        archive,
        &[
            "b 600 0:0 1 /block 5:300",
            "c 600 0:0 1 /char 5:300",
            r#"f 644 0:0 1 /empty """#,
            "l 777 0:0 1 /link -> /a/very/../odd//target",
            "p 644 0:0 1 /pipe",
            r#"f 4755 12:34 1700000000 /su "hello""#,
            "d 1777 0:0 1 /tmp",
        ],
    );
}

#[test]
fn parents_that_no_entry_makes_belong_to_root() {
    becomes(
        Archive::new().file("a/b/c", b"x").entry(Header { mode: 0o700, ..Header::new(b'5', "a") }, &[]),
        &["d 700 0:0 1 /a", "d 755 0:0 0 /a/b", r#"f 644 0:0 1 /a/b/c "x""#],
    );
}

#[test]
fn entries_of_the_root_itself_change_nothing() {
    let root = |name| Header { mode: 0o700, uid: 7, ..Header::new(b'5', name) };
    becomes(Archive::new().entry(root("./"), &[]).entry(root("/"), &[]).entry(root("a/.."), &[]), &[]);
    is_refused(
        Archive::new().file(".", b"x"),
        "expected a directory at the layer's root, found a regular file",
    );
}

#[test]
fn absolute_and_untidy_paths_stay_inside() {
    becomes(
        Archive::new().file("/a", b"1").file(".//b", b"2").file("x/../c", b"3"),
        &[r#"f 644 0:0 1 /a "1""#, r#"f 644 0:0 1 /b "2""#, r#"f 644 0:0 1 /c "3""#],
    );
    for path in ["../a", "a/../../b", "/..", ".."] {
        is_refused(Archive::new().file(path, b"x"), "expected a path inside the layer");
    }
    is_refused(Archive::new().file("a", b"").hard_link("b", "../a"), "expected a path inside the layer");
}

#[test]
fn the_last_of_several_entries_wins() {
    becomes(
        Archive::new().file("a", b"old").symlink("a", "x").file("a", b"new"),
        &[r#"f 644 0:0 1 /a "new""#],
    );
    // A file takes the place of a directory and all in it.
    becomes(Archive::new().file("a/b", b"x").file("a", b"y"), &[r#"f 644 0:0 1 /a "y""#]);
    becomes(
        Archive::new().file("a", b"y").directory("a").file("a/b", b"x"),
        &["d 755 0:0 1 /a", r#"f 644 0:0 1 /a/b "x""#],
    );
}

#[test]
fn a_directory_over_a_directory_keeps_its_files_and_attributes() {
    let xattr = |name: &str, value: &[u8]| Archive::new().pax(&[(name, value)]).directory("a").unfinished();
    becomes(
        Archive::new()
            .raw(&xattr("SCHILY.xattr.user.one", b"1"))
            .file("a/b", b"x")
            .raw(&xattr("SCHILY.xattr.user.two", b"2"))
            .entry(Header { mode: 0o711, uid: 3, mtime: 9, ..Header::new(b'5', "a") }, &[]),
        &["d 711 3:0 9 /a user.one=1 user.two=2", r#"f 644 0:0 1 /a/b "x""#],
    );
}

#[test]
fn whiteouts_become_overlayfs_marks() {
    becomes(
        Archive::new()
            .directory("a")
            .entry(Header { uid: 5, gid: 6, ..Header::new(b'0', "a/.wh.gone") }, b"data of a whiteout")
            .file("a/.wh..wh..opq", b"")
            .file("new/.wh..wh..opq", b""),
        &[
            "d 755 0:0 1 /a trusted.overlay.opaque=y",
            "c 0 5:6 0 /a/gone 0:0",
            "d 755 0:0 0 /new trusted.overlay.opaque=y",
        ],
    );
    becomes_opaque_root(Archive::new().file(".wh..wh..opq", b""));
}

fn becomes_opaque_root(archive: Archive) {
    assert_eq!(listing(&archive.finish()).unwrap(), [format!("{ROOT} trusted.overlay.opaque=y")]);
}

#[test]
fn a_whiteout_hides_lower_layers_only_in_either_order() {
    let file = || Archive::new().file("a", b"x");
    let file_whiteout = || Archive::new().file(".wh.a", b"");
    let join = |first: Archive, second: Archive| first.raw(&second.unfinished());
    for archive in [join(file(), file_whiteout()), join(file_whiteout(), file())] {
        becomes(archive, &[r#"f 644 0:0 1 /a "x""#]);
    }
    let tree = || Archive::new().directory("a").file("a/b", b"x");
    let opaque = &["d 755 0:0 1 /a trusted.overlay.opaque=y", r#"f 644 0:0 1 /a/b "x""#];
    for archive in [join(tree(), file_whiteout()), join(file_whiteout(), tree())] {
        becomes(archive, opaque);
    }
    // A directory that only its file implies.
    becomes(
        Archive::new().file(".wh.a", b"").file("a/b", b"x"),
        &["d 755 0:0 0 /a trusted.overlay.opaque=y", r#"f 644 0:0 1 /a/b "x""#],
    );
    becomes(
        Archive::new().file("a/.wh..wh..opq", b"").directory("a"),
        &["d 755 0:0 1 /a trusted.overlay.opaque=y"],
    );
}

#[test]
fn what_aufs_kept_for_itself_is_left_out() {
    becomes(
        Archive::new()
            .directory(".wh..wh.plnk")
            .file(".wh..wh.plnk/1.2", b"x")
            .file(".wh..wh.aufs", b"")
            .file("a", b""),
        &[r#"f 644 0:0 1 /a """#],
    );
    is_refused(Archive::new().hard_link("b", ".wh..wh.plnk/1.2"), "which is not in it");
}

#[test]
fn whiteouts_of_nothing_are_refused() {
    for name in [".wh.", "a/.wh..", "a/.wh..."] {
        is_refused(Archive::new().file(name, b""), "expected a name behind .wh. other than . and ..");
    }
    is_refused(Archive::new().file(".wh.a/b", b""), "expected no directory whose name begins with .wh.");
}

#[test]
fn hard_links_are_second_names() {
    becomes(
        Archive::new()
            .file("d/a", b"x")
            .hard_link("b", "d/a")
            .hard_link("c", "/b")
            .symlink("l", "d")
            .hard_link("e", "l/a"),
        &[
            r#"f 644 0:0 1 /b "x""#,
            "= /c /b",
            "d 755 0:0 0 /d",
            "= /d/a /b",
            "= /e /b",
            "l 777 0:0 1 /l -> d",
        ],
    );
    // Never of what a symbolic link points at.
    becomes(
        Archive::new().file("a", b"x").symlink("l", "a").hard_link("m", "l"),
        &[r#"f 644 0:0 1 /a "x""#, "l 777 0:0 1 /l -> a", "= /m /l"],
    );
    // The file's metadata are the last entry's.
    let link = Header { link: b"a".to_vec(), mode: 0o400, uid: 9, mtime: 8, ..Header::new(b'1', "b") };
    becomes(Archive::new().file("a", b"x").entry(link, &[]), &[r#"f 400 9:0 8 /a "x""#, "= /b /a"]);
}

#[test]
fn a_file_outlives_its_first_name() {
    becomes(
        Archive::new().file("a", b"x").hard_link("b", "a").file("a", b"y"),
        &[r#"f 644 0:0 1 /a "y""#, r#"f 644 0:0 1 /b "x""#],
    );
}

#[test]
fn hard_links_to_anything_else_are_refused() {
    is_refused(Archive::new().hard_link("a", "b").file("b", b""), "a link to \"b\", which is not in it");
    is_refused(Archive::new().file("a", b"").hard_link("a", "a"), "which is not in it");
    is_refused(Archive::new().directory("d").hard_link("a", "d"), "found one to a directory");
    is_refused(Archive::new().hard_link("a", "/"), "found one to a directory");
}

#[test]
fn symbolic_links_of_the_layer_lead_to_its_directories() {
    becomes(
        Archive::new().directory("usr/lib").symlink("lib", "usr/lib").file("lib/a", b"x"),
        &[
            "l 777 0:0 1 /lib -> usr/lib",
            "d 755 0:0 0 /usr",
            "d 755 0:0 1 /usr/lib",
            r#"f 644 0:0 1 /usr/lib/a "x""#,
        ],
    );
    // Nothing above the root.
    becomes(
        Archive::new()
            .symlink("up", "../../../x")
            .file("up/a", b"x")
            .symlink("abs", "/x/")
            .file("abs/b", b"y"),
        &[
            "l 777 0:0 1 /abs -> /x/",
            "l 777 0:0 1 /up -> ../../../x",
            "d 755 0:0 0 /x",
            r#"f 644 0:0 1 /x/a "x""#,
            r#"f 644 0:0 1 /x/b "y""#,
        ],
    );
    // An entry at the link itself takes its place.
    becomes(Archive::new().symlink("l", "x").directory("l"), &["d 755 0:0 1 /l"]);
}

#[test]
fn paths_through_cycles_and_files_are_refused() {
    is_refused(Archive::new().symlink("a", "b").symlink("b", "a").file("a/c", b""), "more, or a cycle");
    is_refused(Archive::new().symlink("a", "a/a").file("a/c", b""), "more, or a cycle");
    is_refused(Archive::new().file("a", b"").file("a/b", b""), "another kind of file at \"/a\"");
    let dots = "./".repeat(1000) + "x";
    let archive = Archive::new().pax(&[("linkpath", dots.as_bytes())]).symlink("x", "").file("x/y", b"");
    is_refused(archive, "more, or a cycle");
    let up = "../".repeat(1300);
    let archive = Archive::new().pax(&[("linkpath", up.as_bytes())]).symlink("l", "").file("l/l/l/l/x", b"");
    is_refused(archive, "expected at most 4096 components");
}

#[test]
fn an_image_cannot_forge_overlay_marks() {
    becomes(
        Archive::new()
            .pax(&[
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
                ("LIBARCHIVE.xattr.user.twice", b"MQ"),
                ("SCHILY.xattr.system.nfs4_acl", b"?"),
                ("SCHILY.xattr.user.empty", b""),
            ])
            .directory("a"),
        &[r"d 755 0:0 1 /a security.capability=\x01\x00\x00\x02 user.empty="],
    );
}

#[test]
fn names_that_linux_does_not_have_are_refused() {
    let long = |name: Vec<u8>| Archive::new().gnu_long(b'L', &name).file("x", b"");
    is_refused(long(vec![b'n'; 256]), "expected a name of 1 to 255 bytes");
    is_refused(long(b"d/".repeat(2049)), "expected a path of at most 4096 bytes, found 4098 bytes");
    is_refused(
        Archive::new().gnu_long(b'K', &[b't'; 4097]).symlink("x", ""),
        "expected a target of at most 4096",
    );
    is_refused(Archive::new().symlink("x", ""), "expected a target of 1 to 4095 bytes, found 0");
}

#[test]
fn limits_are_errors_that_name_them() {
    let archive = (0..11).fold(Archive::new(), |archive, n| archive.file(&n.to_string(), b"")).finish();
    let error = |limits: Limits| listing_within(&archive, &limits).unwrap_err().to_string();
    assert!(listing_within(&archive, &Limits { entries: 11, ..Limits::default() }).is_ok());
    let message = error(Limits { entries: 10, ..Limits::default() });
    assert_eq!(message, "layer: entry at byte 5120, \"10\": expected at most 10 entries, found more");
    assert!(error(Limits { memory: 600, ..Limits::default() }).contains("expected"), "tree memory");
}
