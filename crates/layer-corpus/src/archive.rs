//! Tar archives built block by block, well-formed or not: the ustar header of POSIX.1-1988, the extended headers of
//! POSIX.1-2001 (PAX), and GNU tar's extensions.
//!
//! Nothing is checked: what does not fit its field panics, and all else is written as it is asked for.

/// Fields of a header; what a test does not care about has a default.
#[derive(Debug, Clone)]
pub struct Header {
    /// Name, at most 100 bytes.
    pub name: Vec<u8>,
    /// Folders in front of the name, at most 155 bytes; GNU headers have other fields there.
    pub prefix: Vec<u8>,
    /// Permissions, and whatever else is put there.
    pub mode: u64,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Bytes of data behind the header.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Kind of entry.
    pub type_flag: u8,
    /// Target of a link, at most 100 bytes.
    pub link: Vec<u8>,
    /// [`USTAR`], [`GNU`] or [`V7`].
    pub magic: &'static [u8; 8],
    /// Major and minor number.
    pub device: (u64, u64),
}

/// Magic of POSIX headers.
pub const USTAR: &[u8; 8] = b"ustar\x0000";
/// Magic of GNU tar's headers.
pub const GNU: &[u8; 8] = b"ustar  \0";
/// Headers of before 1988 have none.
pub const V7: &[u8; 8] = &[0; 8];

impl Header {
    /// A header of an entry of root's, without data, changed a second after the epoch.
    pub fn new(type_flag: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            prefix: Vec::new(),
            mode: if type_flag == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 1,
            type_flag,
            link: Vec::new(),
            magic: USTAR,
            device: (0, 0),
        }
    }

    /// The header's block.
    ///
    /// # Panics
    /// When a field does not fit.
    #[must_use]
    pub fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name);
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(108, format!("{:07o}\0", self.uid).as_bytes());
        put(116, format!("{:07o}\0", self.gid).as_bytes());
        put(124, format!("{:011o}\0", self.size).as_bytes());
        put(136, format!("{:011o}\0", self.mtime).as_bytes());
        put(156, &[self.type_flag]);
        put(157, &self.link);
        put(257, self.magic);
        if self.magic != V7 {
            put(329, format!("{:07o}\0", self.device.0).as_bytes());
            put(337, format!("{:07o}\0", self.device.1).as_bytes());
        }
        put(345, &self.prefix);
        seal(&mut block);
        block
    }
}

/// Writes the check sum.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// An extended header's data.
#[must_use]
pub fn records(records: &[(&str, &[u8])]) -> Vec<u8> {
    records.iter().flat_map(|(key, value)| record(key.as_bytes(), value)).collect()
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let length = (1..8)
        .map(|digits| rest.len() + digits)
        .find(|length| length.to_string().len() + rest.len() == *length)
        .unwrap_or_default();
    [length.to_string().as_bytes(), &rest].concat()
}

/// An archive, to which entries are added.
#[derive(Debug, Clone, Default)]
pub struct Archive(Vec<u8>);

impl Archive {
    /// Without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A header that declares its data's size, and the data.
    #[must_use]
    pub fn entry(self, header: Header, data: &[u8]) -> Self {
        let header = Header { size: data.len() as u64, ..header };
        self.raw(&header.block()).data(data)
    }

    /// Data and padding.
    #[must_use]
    pub fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// Any bytes.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A file of mode 0644.
    #[must_use]
    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(Header::new(b'0', name), data)
    }

    /// A directory of mode 0755.
    #[must_use]
    pub fn directory(self, name: &str) -> Self {
        self.entry(Header::new(b'5', name), &[])
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(Header { link: target.into(), ..Header::new(b'2', name) }, &[])
    }

    /// A hard link.
    #[must_use]
    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(Header { link: target.into(), ..Header::new(b'1', name) }, &[])
    }

    /// An extended header for the next entry.
    #[must_use]
    pub fn pax(self, pairs: &[(&str, &[u8])]) -> Self {
        self.entry(Header::new(b'x', "PaxHeaders/x"), &records(pairs))
    }

    /// GNU tar's entry for a long name (`L`) or a long target (`K`) of the next one.
    #[must_use]
    pub fn gnu_long(self, type_flag: u8, text: &[u8]) -> Self {
        let header = Header { magic: GNU, ..Header::new(type_flag, "././@LongLink") };
        self.entry(header, &[text, b"\0"].concat())
    }

    /// The archive with its end.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }

    /// The archive without an end.
    #[must_use]
    pub fn unfinished(self) -> Vec<u8> {
        self.0
    }
}
