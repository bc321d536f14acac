//! The reader against headers of every dialect, and against their faults.

use std::io::{self, BufRead, Read};

use erofs_verity::tree::Timestamp;
use layer_corpus::archive::{Archive, GNU, Header, V7, records, seal};
use oci_layer::tar::{Entry, Kind, Reader, TarError};

/// All entries with their data.
fn entries(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    entries_from(archive)
}

fn entries_from(archive: impl BufRead) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        reader.read_data(reader.remaining(), |piece| {
            data.extend_from_slice(piece);
            Ok::<_, TarError>(())
        })?;
        entries.push((entry, data));
    }
    Ok(entries)
}

fn one(archive: Archive) -> Entry {
    let mut entries = entries(&archive.finish()).unwrap();
    assert_eq!(entries.len(), 1);
    entries.remove(0).0
}

#[track_caller]
fn is_refused(archive: &[u8], message: &str) {
    let error = entries(archive).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn names_come_from_the_last_header_that_has_one() {
    let long = [b'n'; 300];
    let prefixed = Header { prefix: b"some/dir".to_vec(), ..Header::new(b'0', "name") };
    for (archive, path) in [
        (Archive::new().entry(prefixed.clone(), b""), &b"some/dir/name"[..]),
        (Archive::new().entry(Header { magic: V7, ..prefixed.clone() }, b""), b"name"),
        // Times that are no numbers: a prefix where GNU headers have none.
        (Archive::new().entry(Header { magic: GNU, ..prefixed.clone() }, b""), b"some/dir/name"),
        (
            Archive::new()
                .entry(Header { magic: GNU, prefix: b"00000000012\0".to_vec(), ..prefixed.clone() }, b""),
            b"name",
        ),
        (Archive::new().pax(&[("path", b"p\xFF")]).entry(prefixed.clone(), b""), b"p\xFF"),
        (Archive::new().pax(&[("path", b"")]).entry(prefixed.clone(), b""), b"some/dir/name"),
        (Archive::new().pax(&[("path", b"one")]).pax(&[("uid", b"1")]).file("two", b""), b"two"),
        (Archive::new().gnu_long(b'L', &long).file("x", b""), &long),
        (Archive::new().gnu_long(b'L', &long).pax(&[("path", b"short")]).file("x", b""), &long),
        (Archive::new().pax(&[("path", b"a\nb=c")]).file("x", b""), b"a\nb=c"),
    ] {
        assert_eq!(one(archive).path.escape_ascii().to_string(), path.escape_ascii().to_string());
    }
    let whole = Header::new(b'0', [b'n'; 100]);
    assert_eq!(one(Archive::new().entry(whole, b"")).path, [b'n'; 100]);
    let link = Archive::new().gnu_long(b'K', &long).symlink("x", "short");
    assert_eq!(one(link).kind, Kind::Symlink(long.to_vec()));
    let link = Archive::new().pax(&[("linkpath", b"t")]).hard_link("x", "short");
    assert_eq!(one(link).kind, Kind::HardLink(b"t".to_vec()));
}

#[test]
fn numbers_come_from_records_where_there_are_any() {
    let archive = Archive::new().pax(&[
        ("uid", b"3000000000"),
        ("gid", b"7"),
        ("mtime", b"1700000000.25"),
        ("atime", b"not looked at"),
        ("comment", b"not looked at"),
    ]);
    let entry =
        one(archive
            .entry(Header { uid: 1, gid: 2, mtime: 3, mode: 0o100_644, ..Header::new(b'0', "x") }, b""));
    assert_eq!((entry.uid, entry.gid, entry.permissions), (3_000_000_000, 7, 0o644));
    assert_eq!(entry.mtime, Timestamp { seconds: 1_700_000_000, nanoseconds: 250_000_000 });
    for (text, seconds, nanoseconds) in [
        (&b"5"[..], 5, 0),
        (b"5.", 5, 0),
        (b"5.1234567891", 5, 123_456_789),
        (b"-5", -5, 0),
        (b"-5.25", -6, 750_000_000),
        (b"-0.5", -1, 500_000_000),
    ] {
        let entry = one(Archive::new().pax(&[("mtime", text)]).file("x", b""));
        assert_eq!(entry.mtime, Timestamp { seconds, nanoseconds }, "{}", text.escape_ascii());
    }
}

#[test]
fn numbers_too_large_for_octal_are_read() {
    let mut block = Header { magic: GNU, ..Header::new(b'0', "x") }.block();
    block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0, 0x20, 0, 0]);
    block[136..148].copy_from_slice(&[0xFF; 12]);
    seal(&mut block);
    let entry = one(Archive::new().raw(&block));
    assert_eq!((entry.uid, entry.mtime.seconds), (0x20_0000, -1));
}

#[test]
fn sizes_come_from_records_and_types_without_data_have_none() {
    // A size of 3 in the record, of 0 in the header.
    let archive = Archive::new()
        .pax(&[("size", b"3")])
        .raw(&Header::new(b'0', "a").block())
        .data(b"abc")
        .file("b", b"");
    let read = entries(&archive.finish()).unwrap();
    assert_eq!(read[0].1, b"abc");
    assert_eq!(read[1].0.path, b"b");
    for type_flag in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let header = Header { size: 5000, link: b"a".to_vec(), ..Header::new(type_flag, "x") };
        let read = entries(&Archive::new().raw(&header.block()).file("b", b"data").finish()).unwrap();
        assert_eq!((read.len(), &read[1].1[..]), (2, &b"data"[..]));
    }
}

#[test]
fn a_slash_makes_a_directory_of_the_old_type_only() {
    let kind = |type_flag| one(Archive::new().entry(Header::new(type_flag, "x/"), b"")).kind;
    assert_eq!(
        (kind(0), kind(b'0'), kind(b'5')),
        (Kind::Directory, Kind::Regular { size: 0 }, Kind::Directory)
    );
    assert_eq!(one(Archive::new().entry(Header::new(0, "x"), b"abc")).kind, Kind::Regular { size: 3 });
}

#[test]
fn global_headers_change_nothing() {
    let global = |data: &[u8]| Archive::new().entry(Header::new(b'g', "pax_global_header"), data);
    let archive =
        global(&records(&[("comment", b"0123"), ("path", b"everywhere"), ("uid", b"5")])).file("a", b"x");
    assert_eq!((one(archive.clone()).path, one(archive).uid), (b"a".to_vec(), 0));
    // Nor does what stands in front of one.
    let global = global(&records(&[("comment", b"0123")])).unfinished();
    assert_eq!(one(Archive::new().pax(&[("path", b"lost")]).raw(&global).file("a", b"x")).path, b"a");
}

#[test]
fn an_archive_ends_in_several_ways() {
    let archive = || Archive::new().file("a", b"abc");
    let whole = archive().unfinished();
    for bytes in [
        whole.clone(),
        archive().raw(&[0; 512]).unfinished(),
        archive().finish(),
        archive().raw(&[0; 1024]).raw(b"anything at all").unfinished(),
        whole[..512 + 3].to_vec(),
        whole[..512 + 100].to_vec(),
    ] {
        assert_eq!(entries(&bytes).unwrap().len(), 1);
    }
    assert_eq!(entries(b"").unwrap().len(), 0);
    is_refused(&whole[..512 + 2], "expected 1 more bytes of data at byte 514, found the end of the archive");
    is_refused(&whole[..511], "expected 1 more bytes of a header at byte 511");
    is_refused(&archive().raw(&[0; 600]).unfinished(), "expected 424 more bytes of a header at byte 1624");
    is_refused(&archive().raw(&[0; 512]).file("b", b"").finish(), "found one block of zeros and more");
    is_refused(&Archive::new().pax(&[("uid", b"1")]).finish(), "expected an entry behind it");
}

#[test]
fn check_sums_are_checked_in_both_ways() {
    let mut block = Header::new(b'0', b"\xFF\xFE").block();
    let signed: i32 = block
        .iter()
        .enumerate()
        .map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { i32::from(byte.cast_signed()) })
        .sum();
    block[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
    assert_eq!(one(Archive::new().raw(&block)).path, b"\xFF\xFE");
    block[0] ^= 1;
    is_refused(&block, "entry at byte 0: check sum: expected a header whose check sum fits its bytes");
    is_refused(&[b'x'; 512], "check sum: expected an octal number");
}

#[test]
fn faults_name_their_field_and_place() {
    let header = |change: &dyn Fn(&mut [u8; 512])| {
        let mut block = Header::new(b'0', "x").block();
        change(&mut block);
        seal(&mut block);
        Archive::new().file("first", b"").raw(&block).finish()
    };
    let negative = |at: usize, length: usize| header(&|block| block[at..at + length].fill(0xFF));
    for (archive, message) in [
        (
            header(&|block| block[100] = b'9'),
            "entry at byte 512: mode: expected an octal or base-256 number of 64 bits",
        ),
        (negative(100, 8), "mode: expected a positive number, found -1"),
        (negative(108, 8), "uid: expected a number from 0 to 4294967294, found -1"),
        (negative(116, 8), "gid: expected a number from 0 to 4294967294, found -1"),
        (negative(124, 12), "size: expected a number from 0 to 2^63 - 1, found -1"),
        (
            header(&|block| block[124..136].fill(0x80)),
            "size: expected an octal or base-256 number of 64 bits",
        ),
        (header(&|block| block[156] = b'7'), "type flag: expected a file, link, device, directory or pipe"),
        (header(&|block| block[156] = b'S'), "expected a GNU header for a file of type 'S'"),
    ] {
        is_refused(&archive, message);
    }
    let record = |data: &[u8]| Archive::new().entry(Header::new(b'x', "h"), data).file("x", b"").finish();
    for (data, message) in [
        (&b"11 path=x\n"[..], "expected records of the form"),
        (b"9 path=x", "expected records of the form"),
        (b"6 path\n", "expected records of the form"),
        (b"99999999999999999999 path=x\n", "expected records of the form"),
        (b"-9 path=x\n", "expected records of the form"),
        (b"0 path=x\n", "expected records of the form"),
        (b"2 ", "expected records of the form"),
        (b"5 =x\n", "expected records of the form"),
        (b"9 path=x\nrest", "expected records of the form"),
        (b"11 path=a\0\n", "path: expected text without zero bytes"),
        (b"9 uid=-1\n", "uid: expected a number from 0 to 4294967294, found -1"),
        (b"11 size=-1\n", "size: expected a number from 0 to 2^63 - 1, found -1"),
        (b"9 uid=1x\n", "uid: expected a decimal number of 64 bits"),
        (b"13 mtime=1,5\n", "mtime: expected decimal seconds with an optional fraction"),
        (b"31 mtime=-9223372036854775808.5\n", "expected records of the form"),
        (b"32 mtime=-9223372036854775808.5\n", "mtime: expected decimal seconds"),
    ] {
        is_refused(&record(data), message);
    }
    let huge = Header { size: (1 << 20) + 1, ..Header::new(b'x', "h") }.block();
    is_refused(&huge, "size: expected at most 1048576 bytes in an extension header, found 1048577");
}

#[test]
fn the_streams_own_errors_are_passed_on() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    let archive = Archive::new().file("a", b"abc").unfinished();
    let stream = io::BufReader::new(archive[..600].chain(Broken));
    let error = entries_from(stream).unwrap_err().to_string();
    assert_eq!(error, "tar: reading the archive at byte 600: broken");
}

#[test]
fn pieces_of_any_size_give_the_same_entries() {
    let archive =
        Archive::new().pax(&[("path", &[b'p'; 700])]).file("a", &[7; 3000]).symlink("b", "c").finish();
    let whole = entries(&archive).unwrap();
    for capacity in [1, 7, 511, 512, 513, 4096] {
        let stream = io::BufReader::with_capacity(capacity, &archive[..]);
        assert_eq!(entries_from(stream).unwrap(), whole, "{capacity}");
    }
}
