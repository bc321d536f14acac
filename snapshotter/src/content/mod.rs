//! containerd's content store: where layer blobs, manifests and configurations come from.

use std::io::Read;

use tonic::async_trait;

use crate::digest::Digest;
use crate::error::Error;

pub use containerd::Containerd;

mod containerd;
mod stream;

/// A piece of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// What is asked of a content store. Content is addressed within a containerd namespace.
#[async_trait]
pub trait ContentStore: Send + Sync + 'static {
    /// The image manifests of a namespace: content that refers to an image configuration.
    ///
    /// # Errors
    /// When the store does not answer.
    async fn manifests(&self, namespace: &str) -> Result<Vec<ContentInfo>, Error>;

    /// Looks for content; `None` if it is not there, or not completely.
    ///
    /// # Errors
    /// When the store does not answer.
    async fn info(&self, namespace: &str, digest: Digest) -> Result<Option<ContentInfo>, Error>;

    /// Reads content from its beginning. The reader blocks, and must not be used on an asynchronous thread.
    ///
    /// # Errors
    /// When the store does not answer.
    async fn open(&self, namespace: &str, content: ContentInfo) -> Result<Box<dyn Read + Send>, Error>;
}

/// Reads all of a small piece of content.
///
/// # Errors
/// When it is longer than `limit` bytes or cannot be read.
pub async fn read_small(
    store: &dyn ContentStore,
    namespace: &str,
    content: ContentInfo,
    limit: u64,
) -> Result<Vec<u8>, Error> {
    let failed = |message: String| Error::Content { what: format!("read {}", content.digest), message };
    if content.size > limit {
        return Err(failed(format!("expected at most {limit} bytes, found {}", content.size)));
    }
    let reader = store.open(namespace, content).await?;
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        reader.take(limit).read_to_end(&mut bytes).map(|_| bytes)
    });
    let bytes = read.await.map_err(|_| Error::Interrupted("reading content"))?;
    bytes.map_err(|error| failed(error.to_string()))
}
