//! The program: `serve` answers containerd, `convert` converts one layer blob, `check` verifies a store.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use snapshotter::config::Config;
use snapshotter::content::Containerd;
use snapshotter::oci::OciConverter;
use snapshotter::service::Service;
use snapshotter::store::Store;
use snapshotter::{check, serve};
use tokio::signal::unix::{SignalKind, signal};

/// Keeps container images as layers that utility VMs verify block by block.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer containerd's requests, as a proxy snapshotter (and differ).
    Serve(Settings),
    /// Convert a layer blob (tar, gzip or zstd) to a layer file.
    Convert {
        /// The blob; `-` for standard input.
        blob: PathBuf,
        /// The layer file; must not exist.
        out: PathBuf,
        /// Print for programs.
        #[arg(long)]
        json: bool,
    },
    /// Verify every layer of a store against its root hash. The service must not be running.
    Check(Settings),
}

/// Where things are. Flags win over the configuration file.
#[derive(clap::Args)]
struct Settings {
    /// Configuration file [default: /etc/uvm/snapshotter.toml, if there is one].
    #[arg(long)]
    config: Option<PathBuf>,
    /// Directory of the store.
    #[arg(long)]
    root: Option<PathBuf>,
    /// Socket at which containerd is answered.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// containerd's own socket.
    #[arg(long)]
    containerd: Option<PathBuf>,
    /// Directory of containerd's content store.
    #[arg(long)]
    content: Option<PathBuf>,
}

impl Settings {
    fn load(self) -> Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        let flags = [
            (&mut config.root, self.root),
            (&mut config.socket, self.socket),
            (&mut config.containerd, self.containerd),
            (&mut config.content, self.content),
        ];
        for (setting, flag) in flags {
            if let Some(flag) = flag {
                *setting = flag;
            }
        }
        config.check()?;
        Ok(config)
    }
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Serve(settings) => settings.load().and_then(run_service),
        Command::Convert { blob, out, json } => convert(blob, out, json),
        Command::Check(settings) => settings.load().and_then(|config| run_check(&config)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("uvm-snapshotter: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_service(config: Config) -> Result<()> {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).without_time().init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = Store::open(&config.root)?;
        let content = Some(config.content.as_path()).filter(|path| !path.as_os_str().is_empty());
        let content = Arc::new(Containerd::new(&config.containerd, content));
        let (bytes, entries) = (config.max_layer_bytes, config.max_layer_entries);
        let converter = Arc::new(OciConverter::new(bytes, entries, store.spool()));
        let service = Service::new(store, content, converter, config.adopt, config.conversions);
        let end = end_signal()?;
        let listener = serve::listen(&config.socket)
            .await
            .with_context(|| format!("cannot listen at {}", config.socket.display()))?;
        tracing::info!("store {}, socket {}", config.root.display(), config.socket.display());
        // Without a service manager there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        serve::serve(listener, service, end).await?;
        Ok(())
    })
}

/// Ends when the program is asked to.
fn end_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn convert(blob: PathBuf, out: PathBuf, json: bool) -> Result<()> {
    let config = Config::default();
    let reader: Box<dyn io::Read + Send> = if blob.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(&blob).with_context(|| format!("cannot open {}", blob.display()))?)
    };
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&out);
    let file = file.with_context(|| format!("cannot make {}", out.display()))?;
    let spool = std::env::temp_dir();
    let converter = OciConverter::new(config.max_layer_bytes, config.max_layer_entries, spool);
    let converted =
        snapshotter::convert::Converter::convert(&converter, reader, &file).map_err(|failure| {
            // Half a layer is of no use to anyone.
            let _ = std::fs::remove_file(&out);
            anyhow::anyhow!("{}: {}", blob.display(), failure.message)
        })?;
    let layer = converted.layer;
    let mut stdout = io::stdout().lock();
    if json {
        let text = serde_json::json!({
            "blob": converted.blob, "diff_id": converted.diff_id, "uncompressed_bytes": converted.uncompressed_bytes,
            "root_hash": layer.root.to_string(), "data_blocks": layer.data_blocks, "length": layer.length,
        });
        writeln!(stdout, "{text}")?;
    } else {
        writeln!(stdout, "diff id      {}", converted.diff_id)?;
        writeln!(stdout, "root hash    {}", layer.root)?;
        writeln!(stdout, "data blocks  {}", layer.data_blocks)?;
        writeln!(stdout, "length       {}", layer.length)?;
    }
    Ok(())
}

fn run_check(config: &Config) -> Result<()> {
    let store = Store::open(&config.root)?;
    let mut bad = 0;
    for (id, found) in check::layers(&store) {
        match found {
            Ok(layer) => println!("layer {id}  ok  {}  {} bytes", layer.root_hash(), layer.length),
            Err(error) => {
                bad += 1;
                println!("layer {id}  BAD  {error}");
            }
        }
    }
    if bad > 0 {
        bail!("{}: {bad} layers are damaged", config.root.display());
    }
    Ok(())
}
