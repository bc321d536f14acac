//! One conversion: a layer's blob in, a layer file and the digests of both forms out.
//!
//! Reading, decompression, the two digests, parsing, tree hashing and writing run side by side:
//!
//! ```text
//! blob ─► read ─┬► diff id                     (uncompressed: its digest is the blob's as well)
//!               └► entries ─► layer writer
//!
//! blob ─► read, blob digest ─► decompress ─┬► diff id
//!                                          └► entries ─► layer writer
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, ScopedJoinHandle};

use erofs_verity::layer::{Layer, LayerWriter, Settings, WriteError};
use sha2::{Digest as _, Sha256};

use crate::apply::{Applied, ApplyError, apply};
use crate::compression::{Compression, Decoder, MAX_ZSTD_WINDOW, zstd_window};
use crate::pipeline::{Buffers, Chunk, Incoming, Message};
use crate::{Digest, Limits, tar};

/// Window of a zstd frame that any decoder should accept (RFC 8878); it does not count as memory of the tree.
const ORDINARY_WINDOW: usize = 8 << 20;

/// A converted layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// Digest of the uncompressed archive, all of it.
    pub diff_id: Digest,
    /// Digest of the blob as it came.
    pub blob_digest: Digest,
    /// Bytes in the blob.
    pub blob_bytes: u64,
    /// Bytes in the uncompressed archive.
    pub uncompressed_bytes: u64,
    /// Entries in the archive.
    pub entries: u64,
    /// How the blob is compressed.
    pub compression: Compression,
    /// The layer file.
    pub layer: Layer,
}

/// Why a blob is not converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The blob could not be read.
    #[error("cannot read the layer's blob: {0}")]
    Read(#[source] io::Error),
    /// The blob could not be decompressed.
    #[error("cannot decompress the layer's blob ({compression:?}): {source}")]
    Decompress {
        /// How it is compressed.
        compression: Compression,
        /// What the decoder says.
        source: io::Error,
    },
    /// A zstd frame asks for too much memory.
    #[error("zstd: expected a window of at most {MAX_ZSTD_WINDOW} bytes, found {0}")]
    Window(u64),
    /// More than [`Limits::uncompressed_bytes`].
    #[error("layer: expected at most {0} bytes of uncompressed archive, found more")]
    TooLarge(u64),
    /// An entry is refused.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The layer file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A thread could not be started, or panicked.
    #[error("cannot convert in parallel: {0}")]
    Thread(#[source] io::Error),
}

/// Converts the layer in `blob` into the empty file `out`, open for reading and writing, on all processors.
///
/// The caller compares the digests with those that it expects: only then is the layer what was asked for.
///
/// # Errors
/// When the blob cannot be read or is refused, or the layer cannot be written. `out` is of no use then.
pub fn convert(blob: impl Read + Send, out: &File, limits: &Limits) -> Result<Converted, ConvertError> {
    convert_with(blob, out, limits, &Settings::default())
}

/// As [`convert`], with a choice of threads and of the directory for temporary files.
///
/// # Errors
/// As [`convert`].
pub fn convert_with(
    mut blob: impl Read + Send,
    out: &File,
    limits: &Limits,
    settings: &Settings,
) -> Result<Converted, ConvertError> {
    let mut writer = LayerWriter::new(out, settings)?;
    let mut buffers = Buffers::new();
    let first = buffers.fill(&mut blob).map_err(ConvertError::Read)?;
    let compression = Compression::detect(first.as_deref().unwrap_or_default());
    let window = decoder_window(compression, first.as_deref().unwrap_or_default())?;
    let tree_memory = limits.memory.saturating_sub(window.saturating_sub(ORDINARY_WINDOW));
    thread::scope(|scope| {
        let (to_parser, parser) = channel();
        let (to_digest, digest) = channel();
        let diff_id = spawn(scope, "diff-id", move || digest_of(&digest))?;
        let archive = Outgoing { readers: vec![to_parser, to_digest], most: limits.uncompressed_bytes };
        let (read, decoded) = match compression {
            Compression::None => {
                let read = spawn(scope, "read", move || archive.pump(&mut blob, buffers, first, |_| ()))?;
                (read, None)
            }
            Compression::Gzip | Compression::Zstd => {
                let (to_decoder, decoder) = channel();
                let blob_out = Outgoing { readers: vec![to_decoder], most: u64::MAX };
                let read = spawn(scope, "read", move || {
                    let mut hasher = Sha256::new();
                    let pumped = blob_out.pump(&mut blob, buffers, first, |bytes| hasher.update(bytes))?;
                    Ok(Pumped { digest: Some(Digest(hasher.finalize().into())), ..pumped })
                })?;
                let decoded = spawn(scope, "decompress", move || {
                    let mut source = Decoder::new(Incoming::new(decoder), compression, window)?;
                    archive.pump(&mut source, Buffers::new(), None, |_| ())
                })?;
                (read, Some(decoded))
            }
        };
        let applied = write_layer(Incoming::new(parser), &mut writer, limits, tree_memory);
        let read = join(read)?.map_err(|error| error.reading(limits))?;
        let decoded = decoded.map(join).transpose()?.transpose();
        let decoded = decoded.map_err(|error| error.decompressing(compression, limits))?;
        let applied = applied?;
        let diff_id = join(diff_id)?;
        let layer = writer.finish(applied.tree)?;
        Ok(Converted {
            diff_id,
            blob_digest: read.digest.unwrap_or(diff_id),
            blob_bytes: read.bytes,
            uncompressed_bytes: decoded.map_or(read.bytes, |decoded| decoded.bytes),
            entries: applied.entries,
            compression,
            layer,
        })
    })
}

/// Applies the archive and passes over what follows its end, which counts for the diff id alone.
fn write_layer(
    archive: Incoming,
    writer: &mut LayerWriter,
    limits: &Limits,
    tree_memory: usize,
) -> Result<Applied, ApplyError> {
    let mut reader = tar::Reader::new(archive);
    let applied = apply(&mut reader, writer, limits, tree_memory)?;
    let offset = reader.position();
    reader.into_inner().drain().map_err(|source| tar::TarError::Input { offset, source })?;
    Ok(applied)
}

/// Bytes of window that the decoder may use.
fn decoder_window(compression: Compression, first: &[u8]) -> Result<usize, ConvertError> {
    let declared = match compression {
        Compression::Zstd => zstd_window(first).unwrap_or_default(),
        Compression::None | Compression::Gzip => 0,
    };
    let window = usize::try_from(declared).ok().filter(|&window| window <= MAX_ZSTD_WINDOW);
    Ok(window.ok_or(ConvertError::Window(declared))?.max(ORDINARY_WINDOW))
}

/// Where a stage sends its stream.
struct Outgoing {
    readers: Vec<Sender<Message>>,
    /// Most bytes in the stream.
    most: u64,
}

/// What a stage has sent.
struct Pumped {
    bytes: u64,
    digest: Option<Digest>,
}

/// Why a stage has stopped.
enum StageError {
    Source(io::Error),
    TooLarge,
}

impl From<io::Error> for StageError {
    fn from(error: io::Error) -> Self {
        Self::Source(error)
    }
}

impl StageError {
    fn reading(self, limits: &Limits) -> ConvertError {
        match self {
            Self::Source(source) => ConvertError::Read(source),
            Self::TooLarge => ConvertError::TooLarge(limits.uncompressed_bytes),
        }
    }

    fn decompressing(self, compression: Compression, limits: &Limits) -> ConvertError {
        match self {
            Self::Source(source) => ConvertError::Decompress { compression, source },
            Self::TooLarge => ConvertError::TooLarge(limits.uncompressed_bytes),
        }
    }
}

impl Outgoing {
    /// Sends `first` and then all of `source`, and shows it to `see` on the way. Ends early when a reader has
    /// gone: that reader says why.
    fn pump(
        self,
        source: &mut impl Read,
        mut buffers: Buffers,
        first: Option<Chunk>,
        mut see: impl FnMut(&[u8]),
    ) -> Result<Pumped, StageError> {
        let mut bytes = 0;
        let mut next = match first {
            Some(chunk) => Some(chunk),
            None => buffers.fill(source)?,
        };
        while let Some(chunk) = next {
            bytes += chunk.len() as u64;
            if bytes > self.most {
                return Err(StageError::TooLarge);
            }
            let is_wanted =
                self.readers.iter().all(|reader| reader.send(Message::Chunk(chunk.clone())).is_ok());
            if !is_wanted {
                return Ok(Pumped { bytes, digest: None });
            }
            see(&chunk);
            drop(chunk);
            next = buffers.fill(source)?;
        }
        for reader in &self.readers {
            // A reader that has gone says why.
            let _ = reader.send(Message::End);
        }
        Ok(Pumped { bytes, digest: None })
    }
}

fn digest_of(messages: &Receiver<Message>) -> Digest {
    let mut hasher = Sha256::new();
    while let Ok(Message::Chunk(chunk)) = messages.recv() {
        hasher.update(&chunk[..]);
    }
    Digest(hasher.finalize().into())
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: &str,
    stage: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, ConvertError> {
    thread::Builder::new().name(name.into()).spawn_scoped(scope, stage).map_err(ConvertError::Thread)
}

fn join<T>(stage: ScopedJoinHandle<'_, T>) -> Result<T, ConvertError> {
    stage.join().map_err(|_| ConvertError::Thread(io::Error::other("a stage panicked")))
}
