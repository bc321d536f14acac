//! Events of tasks, published to containerd in the order in which they happened.
//!
//! One task sends one event after another over one connection; an event that cannot be delivered is tried
//! again before the next one, so that none overtakes it. (The publisher of the `containerd-shim` crate puts a
//! failed event at the end of its queue instead.) After [`ATTEMPTS`] an event is dropped, for containerd may
//! have gone for good.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim::event::Event;
use containerd_shim::protos::protobuf::MessageDyn;
use containerd_shim::protos::protobuf::well_known_types::{any::Any, timestamp::Timestamp};
use containerd_shim::protos::shim::event::Envelope;
use containerd_shim::protos::shim::events::ForwardRequest;
use containerd_shim::protos::shim_async::EventsClient;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;
use ttrpc::asynchronous::Client;
use ttrpc::context;

/// Most events that wait for containerd.
const QUEUE: usize = 1024;
/// How often one event is tried.
const ATTEMPTS: u32 = 5;
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed attempt.
const PAUSE: Duration = Duration::from_millis(500);

enum Item {
    Event(Box<Envelope>),
    Flush(oneshot::Sender<()>),
}

/// Takes events and delivers them in order.
#[derive(Debug, Clone)]
pub struct Publisher {
    namespace: String,
    queue: mpsc::Sender<Item>,
}

/// `time` as protobuf has it; times before 1970 become 1970.
#[must_use]
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        ..Timestamp::default()
    }
}

impl Publisher {
    /// A publisher to containerd's ttrpc socket at `address` (a path, or `unix://` and a path). It connects
    /// when there is something to publish.
    #[must_use]
    pub fn new(namespace: &str, address: &str) -> Self {
        let address = if address.contains("://") { address.to_owned() } else { format!("unix://{address}") };
        let (queue, items) = mpsc::channel(QUEUE);
        tokio::spawn(deliver(address, items));
        Self { namespace: namespace.into(), queue }
    }

    /// Queues `event`.
    pub fn publish<E: Event>(&self, event: &E) {
        let topic = event.topic();
        let event: &dyn MessageDyn = event;
        let value = match event.write_to_bytes_dyn() {
            Ok(value) => value,
            Err(error) => {
                warn!(topic, %error, "an event cannot be encoded");
                return;
            }
        };
        let any = Any { type_url: event.descriptor_dyn().full_name().into(), value, ..Any::default() };
        let envelope = Envelope {
            timestamp: Some(timestamp(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: topic.clone(),
            event: Some(any).into(),
            ..Envelope::default()
        };
        if self.queue.try_send(Item::Event(Box::new(envelope))).is_err() {
            warn!(topic, "an event is dropped: containerd takes none, and too many wait");
        }
    }

    /// Waits until what was queued before is delivered or given up, for at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        let (done, flushed) = oneshot::channel();
        let flush = async {
            if self.queue.send(Item::Flush(done)).await.is_ok() {
                // An error means that the queue has ended, and everything in it.
                let _ = flushed.await;
            }
        };
        if tokio::time::timeout(limit, flush).await.is_err() {
            warn!("events are dropped: containerd did not take them in time");
        }
    }
}

async fn deliver(address: String, mut items: mpsc::Receiver<Item>) {
    let mut client = None;
    while let Some(item) = items.recv().await {
        match item {
            Item::Event(envelope) => deliver_one(&address, &mut client, *envelope).await,
            Item::Flush(done) => drop(done.send(())),
        }
    }
}

async fn deliver_one(address: &str, client: &mut Option<EventsClient>, envelope: Envelope) {
    let topic = envelope.topic.clone();
    let request = ForwardRequest { envelope: Some(envelope).into(), ..ForwardRequest::default() };
    for attempt in 1..=ATTEMPTS {
        match attempt_once(address, client, &request).await {
            Ok(()) => return,
            Err(error) => warn!(topic, attempt, %error, "an event cannot be delivered"),
        }
        // Whatever went wrong, the next attempt begins with a new connection.
        *client = None;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn attempt_once(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let connected = match client.take() {
        Some(connected) => connected,
        None => EventsClient::new(Client::connect(address).await?),
    };
    let connected = client.insert(connected);
    connected.forward(context::with_duration(ATTEMPT_TIMEOUT), request).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use containerd_shim::protos::api::Empty;
    use containerd_shim::protos::events::task::{TaskCreate, TaskExit, TaskStart};
    use containerd_shim::protos::shim_async::{Events, create_events};
    use ttrpc::asynchronous::{Server, TtrpcContext};

    use super::*;

    #[derive(Default)]
    struct Log {
        topics: Mutex<Vec<String>>,
        refusals: Mutex<u32>,
    }

    struct Service(Arc<Log>);

    #[async_trait]
    impl Events for Service {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let mut refusals = self.0.refusals.lock().unwrap();
            if *refusals > 0 {
                *refusals -= 1;
                return Err(ttrpc::Error::Others("not now".into()));
            }
            let envelope = request.envelope.unwrap();
            assert_eq!(envelope.namespace, "test");
            assert!(envelope.event.type_url.starts_with("containerd.events.Task"));
            self.0.topics.lock().unwrap().push(envelope.topic);
            Ok(Empty::default())
        }
    }

    #[tokio::test]
    async fn order_survives_a_failed_delivery() {
        let dir = tempfile::tempdir().unwrap();
        let address = format!("unix://{}", dir.path().join("events").display());
        let log = Arc::new(Log::default());
        *log.refusals.lock().unwrap() = 2;
        let service = create_events(Arc::new(Service(Arc::clone(&log))));
        let mut server = Server::new().bind(&address).unwrap().register_service(service);
        server.start().await.unwrap();

        let publisher = Publisher::new("test", &address);
        publisher.publish(&TaskCreate::default());
        publisher.publish(&TaskStart::default());
        publisher.publish(&TaskExit::default());
        publisher.flush(Duration::from_secs(20)).await;
        assert_eq!(*log.topics.lock().unwrap(), ["/tasks/create", "/tasks/start", "/tasks/exit"]);
    }

    #[tokio::test]
    async fn a_flush_is_bounded() {
        let publisher = Publisher::new("test", "/nonexistent/socket");
        publisher.publish(&TaskStart::default());
        let begun = std::time::Instant::now();
        publisher.flush(Duration::from_millis(50)).await;
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}
