//! The service is killed at random instants of parallel unpacks, and its store opened again each time: what was
//! acknowledged is there, whole, and nothing else is.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail with the test")]

use std::collections::HashSet;
use std::env;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use snapshotter::check;
use snapshotter::serve;
use snapshotter::service::Service;
use snapshotter::store::{Kind, Store};
use support::{Client, Content, Image, converter, layer};
use tonic::{Code, Status};

mod support;

/// Times that the service is killed.
const KILLS: u32 = 100;
/// Longest life of a service under load.
const LONGEST: Duration = Duration::from_millis(150);
/// Names the directory to the process that serves.
const DIRECTORY: &str = "UVM_CRASH_TEST_DIRECTORY";

/// Not a test of its own: the process that is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "serves for the other test, which kills it"]
async fn serve_until_killed() {
    let Some(directory) = env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let store = Store::open(&directory.join("store")).unwrap();
    let content = Arc::new(Content::new(&directory.join("content")));
    let service = Service::new(store, content, Arc::new(converter()), Vec::new(), 2);
    let listener = serve::listen(&directory.join("socket")).await.unwrap();
    serve::serve(listener, service, std::future::pending()).await.unwrap();
}

fn start(directory: &Path) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "serve_until_killed", "--ignored"]).env(DIRECTORY, directory);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Images that share layers at different places.
fn images(content: &Content) -> Vec<Image> {
    let layers: Vec<_> = (0..6)
        .map(|index| layer(&[(&format!("dir/file-{index}"), 300_000 + 100_000 * index), ("dir/same", 5000)]))
        .collect();
    let stacks: [&[usize]; 4] = [&[0, 1, 2], &[0, 1, 3], &[4, 1, 0], &[5, 2]];
    let image = |stack: &&[usize]| Image::new(&stack.iter().map(|&i| layers[i].clone()).collect::<Vec<_>>());
    let images: Vec<_> = stacks.iter().map(image).collect();
    images.iter().for_each(|image| content.put_image(image));
    images
}

/// What clients were told, by name of the snapshot.
#[derive(Default)]
struct Acknowledged {
    there: HashSet<String>,
    /// Asked to be removed, with whatever answer.
    doubtful: HashSet<String>,
}

/// Unpacks, commits written directories and removes, until the service is gone.
async fn load(client: Client, image: Image, unique: String, acknowledged: Arc<Mutex<Acknowledged>>) {
    for round in 0.. {
        if let Err(status) = one_round(&client, &image, &format!("{unique}-{round}"), &acknowledged).await {
            // Others remove what this client builds on.
            match status.code() {
                Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition => {}
                _ => return,
            }
        }
        if round % 3 == 2 && remove_all(&client, &acknowledged).await.is_err() {
            return;
        }
    }
}

async fn one_round(
    client: &Client,
    image: &Image,
    unique: &str,
    acknowledged: &Mutex<Acknowledged>,
) -> Result<(), Status> {
    let (top, _) = client.unpack(image, unique).await?;
    acknowledged.lock().unwrap().there.insert(top);
    let (key, name) = (format!("key-{unique}"), format!("name-{unique}"));
    let mounts = client.prepare(&key, "", None).await?;
    // The directory may have gone already, with its snapshot.
    let _ = fs::write(Path::new(&mounts[0].source).join("written"), unique);
    client.commit(&key, &name, [].into()).await?;
    acknowledged.lock().unwrap().there.insert(name);
    Ok(())
}

/// Removes what can be removed, children first.
async fn remove_all(client: &Client, acknowledged: &Mutex<Acknowledged>) -> Result<(), Status> {
    for info in client.list(&[]).await?.into_iter().rev() {
        acknowledged.lock().unwrap().doubtful.insert(info.name.clone());
        match client.remove(&info.name).await {
            Err(status) if !matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {
                return Err(status);
            }
            _ => {}
        }
    }
    Ok(())
}

/// The store as the next start of the service finds it.
fn check_store(root: &Path, acknowledged: &Acknowledged) -> usize {
    let store = Store::open(root).unwrap();
    let entries = store.list();
    let names: HashSet<_> = entries.iter().map(|entry| entry.record.name.clone()).collect();
    for name in acknowledged.there.difference(&acknowledged.doubtful) {
        assert!(names.contains(name), "{name} was acknowledged and is lost");
    }
    let mut needed: Vec<u64> = entries.iter().filter_map(|entry| entry.record.layer).collect();
    needed.sort_unstable();
    needed.dedup();
    assert_eq!(store.layers(), needed);
    for (id, found) in check::layers(&store) {
        found.unwrap_or_else(|error| panic!("layer {id}: {error}"));
    }
    let names = |directory: &str| {
        let entries = fs::read_dir(root.join(directory)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<HashSet<_>>()
    };
    assert!(names("staging").is_empty());
    assert_eq!(names("layers"), needed.iter().map(u64::to_string).collect());
    assert_eq!(names("records"), entries.iter().map(|entry| format!("{}.json", entry.id)).collect());
    let active = entries.iter().filter(|entry| entry.record.kind != Kind::Committed);
    assert_eq!(names("snapshots"), active.map(|entry| entry.id.to_string()).collect());
    entries.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_service_loses_nothing_and_leaves_nothing_half_made() {
    let directory = tempfile::tempdir().unwrap();
    let content = Content::new(&directory.path().join("content"));
    let images = images(&content);
    let (root, socket) = (directory.path().join("store"), directory.path().join("socket"));
    let mut acknowledged = Acknowledged::default();
    let (mut most, mut half_made) = (0, 0);
    for kill in 0..KILLS {
        let mut child = start(directory.path());
        let started = Instant::now();
        let client = loop {
            match Client::connect(&socket).await {
                Ok(client) => break client,
                Err(error) if started.elapsed() > Duration::from_secs(20) => panic!("no service: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        };
        let shared = Arc::new(Mutex::new(std::mem::take(&mut acknowledged)));
        let clients: Vec<_> = (0..8)
            .map(|index| {
                let image = images[index % images.len()].clone();
                tokio::spawn(load(client.clone(), image, format!("{kill}.{index}"), Arc::clone(&shared)))
            })
            .collect();
        // Any instant will do: no two runs kill at the same ones.
        let nanoseconds = RandomState::new().hash_one(kill) % u64::try_from(LONGEST.as_nanos()).unwrap();
        tokio::time::sleep(Duration::from_nanos(nanoseconds)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        for client in clients {
            client.await.unwrap();
        }
        acknowledged = Arc::into_inner(shared).unwrap().into_inner().unwrap();
        half_made += usize::from(fs::read_dir(root.join("staging")).unwrap().count() > 0);
        most = most.max(check_store(&root, &acknowledged));
    }
    println!("{half_made} of {KILLS} kills left something half made; at most {most} snapshots were there");
    assert!(most > 10 && half_made > 10, "{most} snapshots, {half_made} half made: the load was not real");
}
