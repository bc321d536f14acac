//! The content store of a running containerd, over its socket; blobs straight from its directory where that is
//! configured.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{Info, InfoRequest, ListContentRequest, ReadContentRequest};
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, async_trait};

use super::stream::StreamReader;
use super::{ContentInfo, ContentStore};
use crate::NAMESPACE_HEADER;
use crate::digest::Digest;
use crate::error::Error;

/// containerd puts this label on manifests, so that their configurations are not collected as garbage.
const MANIFESTS: &str = r#"labels."containerd.io/gc.ref.content.config""#;
/// containerd streams content in messages of up to 1 MiB, and listings in larger ones.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// A client of containerd's content service. It connects when it is first used: containerd may start later.
pub struct Containerd {
    socket: PathBuf,
    blobs: Option<PathBuf>,
    channel: OnceCell<Channel>,
}

impl Containerd {
    /// Talks to containerd at `socket`. `directory` is the root of its content store; blobs that are there are
    /// read directly, once containerd has said that the namespace has them.
    #[must_use]
    pub fn new(socket: &Path, directory: Option<&Path>) -> Self {
        let blobs = directory.map(|directory| directory.join("blobs/sha256"));
        Self { socket: socket.into(), blobs, channel: OnceCell::new() }
    }

    async fn client(&self) -> Result<ContentClient<Channel>, Error> {
        let connect = || containerd_client::connect(&self.socket);
        let channel = self.channel.get_or_try_init(connect).await.map_err(|error| Error::Content {
            what: format!("connect to {}", self.socket.display()),
            message: sources(&error),
        })?;
        Ok(ContentClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
    }
}

/// An error with what caused it: the transport's own text says nothing.
fn sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

fn request<T>(namespace: &str, message: T) -> Result<Request<T>, Error> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(namespace)
        .map_err(|_| Error::Invalid(format!("namespace {namespace:?}: expected visible ASCII")))?;
    request.metadata_mut().insert(NAMESPACE_HEADER, value);
    Ok(request)
}

fn failed(what: impl Into<String>) -> impl FnOnce(Status) -> Error {
    let what = what.into();
    move |status| Error::Content { what, message: status.message().into() }
}

/// Content in another form than this program understands is as good as not there.
fn content_info(info: &Info) -> Option<ContentInfo> {
    Some(ContentInfo { digest: info.digest.parse().ok()?, size: u64::try_from(info.size).ok()? })
}

#[async_trait]
impl ContentStore for Containerd {
    async fn manifests(&self, namespace: &str) -> Result<Vec<ContentInfo>, Error> {
        let what = "list manifests";
        let message = ListContentRequest { filters: vec![MANIFESTS.into()] };
        let mut client = self.client().await?;
        let mut stream = client.list(request(namespace, message)?).await.map_err(failed(what))?.into_inner();
        let mut found = Vec::new();
        while let Some(response) = stream.message().await.map_err(failed(what))? {
            found.extend(response.info.iter().filter_map(content_info));
        }
        Ok(found)
    }

    async fn info(&self, namespace: &str, digest: Digest) -> Result<Option<ContentInfo>, Error> {
        let message = InfoRequest { digest: digest.to_string() };
        match self.client().await?.info(request(namespace, message)?).await {
            Ok(response) => Ok(response.into_inner().info.as_ref().and_then(content_info)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed(format!("look for {digest}"))(status)),
        }
    }

    async fn open(&self, namespace: &str, content: ContentInfo) -> Result<Box<dyn Read + Send>, Error> {
        if let Some(blobs) = &self.blobs
            && let Ok(file) = File::open(blobs.join(content.digest.hex()))
        {
            return Ok(Box::new(file));
        }
        let message = ReadContentRequest { digest: content.digest.to_string(), offset: 0, size: 0 };
        let what = format!("read {}", content.digest);
        let response = self.client().await?.read(request(namespace, message)?).await.map_err(failed(what))?;
        Ok(Box::new(StreamReader::new(Handle::current(), response.into_inner())))
    }
}
