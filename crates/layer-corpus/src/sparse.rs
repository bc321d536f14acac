//! Sparse files, in the four ways of writing their maps.

use crate::Layers;
use crate::archive::{Archive, GNU, Header, records, seal};

pub(crate) const LAYERS: Layers = &[
    ("sparse-of-pax-0.0", pax_0_0),
    ("sparse-of-pax-0.1", pax_0_1),
    ("sparse-of-pax-1.0", pax_1_0),
    ("sparse-of-old-gnu", old_gnu),
];

/// Three fragments of a file of [`SIZE`] bytes.
const FRAGMENTS: [(u64, &[u8]); 3] = [(3, b"abc"), (70_000, &[b'd'; 9000]), (599_998, b"hi")];
const SIZE: u64 = 600_000;

fn stored() -> Vec<u8> {
    FRAGMENTS.iter().flat_map(|(_, data)| data.iter().copied()).collect()
}

/// A file of holes alone, by a map of version 1.0.
fn hole() -> Archive {
    let pairs: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"hole"),
        ("GNU.sparse.realsize", b"5000"),
    ];
    let mut map = b"0\n".to_vec();
    map.resize(512, 0);
    Archive::new().pax(&pairs).file("GNUSparseFile.2/hole", &map)
}

fn pax_0_0() -> Archive {
    let mut data = records(&[("GNU.sparse.size", b"600000"), ("GNU.sparse.numblocks", b"3")]);
    for (offset, bytes) in FRAGMENTS {
        let (offset, length) = (offset.to_string(), bytes.len().to_string());
        let pair = [("GNU.sparse.offset", offset.as_bytes()), ("GNU.sparse.numbytes", length.as_bytes())];
        data.extend(records(&pair));
    }
    Archive::new().entry(Header::new(b'x', "PaxHeaders/x"), &data).file("file", &stored())
}

fn pax_0_1() -> Archive {
    let pairs: [(&str, &[u8]); 3] = [
        ("GNU.sparse.size", b"600000"),
        ("GNU.sparse.numblocks", b"3"),
        ("GNU.sparse.map", b"3,3,70000,9000,599998,2"),
    ];
    Archive::new().pax(&pairs).file("file", &stored())
}

fn pax_1_0() -> Archive {
    let pairs: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"file"),
        ("GNU.sparse.realsize", b"600000"),
    ];
    let mut data = b"3\n3\n3\n70000\n9000\n599998\n2\n".to_vec();
    data.resize(512, 0);
    data.extend(stored());
    Archive::new().pax(&pairs).file("GNUSparseFile.1/file", &data).raw(&hole().unfinished())
}

fn old_gnu() -> Archive {
    let stored = stored();
    let header = Header { magic: GNU, size: stored.len() as u64, ..Header::new(b'S', "file") };
    let mut block = header.block();
    block[345..].fill(0);
    for (place, (offset, data)) in block[386..482].chunks_exact_mut(24).zip(FRAGMENTS) {
        place.copy_from_slice(format!("{offset:011o}\0{:011o}\0", data.len()).as_bytes());
    }
    block[483..495].copy_from_slice(format!("{SIZE:011o}\0").as_bytes());
    seal(&mut block);
    Archive::new().raw(&block).data(&stored)
}
