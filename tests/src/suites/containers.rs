//! Plain containers, as users of `ctr` have them: each is a pod of one.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};

use crate::case::{Bed, Case};
use crate::command::{eventually, run};
use crate::ctr::{BUSYBOX, Detached, RUNTIME, ctr, import_busybox, run_once, run_once_with_input};
use crate::ledger::Ledger;
use crate::oci_archive;

pub const CASES: &[Case] = &[
    Case { name: "container::streams_are_apart", run: streams },
    Case { name: "container::standard_input", run: standard_input },
    Case { name: "container::exit_codes", run: exit_codes },
    Case { name: "container::death_by_a_signal", run: signal_death },
    Case { name: "container::terminal", run: terminal },
    Case { name: "container::environment_directory_user", run: environment },
    Case { name: "container::read_only_root", run: read_only },
    Case { name: "container::memory_limit_and_oom", run: out_of_memory },
    Case { name: "container::exec_kill_delete", run: exec_and_kill },
    Case { name: "container::pause_metrics_ps", run: pause_and_metrics },
    Case { name: "container::kernel_is_its_own", run: own_kernel },
    Case { name: "container::processors_follow_the_limit", run: processors },
    Case { name: "container::nothing_is_left_behind", run: nothing_left },
];

fn streams(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let outcome =
        run_once(&[], "streams", &["sh", "-c", "echo to-out; echo to-err >&2"])?.expect_status(0)?;
    ensure!(outcome.out == "to-out\n" && outcome.err == "to-err\n", "{outcome:?}");
    Ok(())
}

/// Debian's `ctr` never passes the end of its input on, with any runtime: the container asks for one line.
fn standard_input(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let command = ["sh", "-c", "read line; echo got $line"];
    let outcome = run_once_with_input(&[], "stdin", &command, b"forty-two\n")?.expect_status(0)?;
    ensure!(outcome.out == "got forty-two\n", "{outcome:?}");
    Ok(())
}

fn exit_codes(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    for (id, script, status) in [("exit-0", "exit 0", 0), ("exit-1", "exit 1", 1), ("exit-42", "exit 42", 42)]
    {
        run_once(&[], id, &["sh", "-c", script])?.expect_status(status)?;
    }
    Ok(())
}

/// The kill comes from outside: the first process of a PID namespace does not die of its own signals.
fn signal_death(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let running = std::thread::spawn(|| run_once(&[], "killed", &["sleep", "1000"]));
    // A task that is killed before its start ends too, but then it is the start that fails.
    eventually("the task runs", Duration::from_secs(60), || {
        let tasks = ctr(&["task", "ls"])?.expect_status(0)?.out;
        let is_ours = |line: &str| line.starts_with("killed ") && line.contains("RUNNING");
        Ok(tasks.lines().any(is_ours).then_some(()))
    })?;
    ctr(&["task", "kill", "--signal", "KILL", "killed"])?.expect_status(0)?;
    running.join().map_err(|_| anyhow!("the thread panicked"))??.expect_status(137)?;
    Ok(())
}

/// `script` gives `ctr` the terminal that it wants.
fn terminal(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    // The size arrives after the start: the container waits for it, and the case's time limit bounds that.
    let inside = "tty; until stty size | grep 33; do sleep 1; done; echo err >&2";
    let inner = format!(
        "stty rows 33 columns 99; ctr run --rm -t --runtime {RUNTIME} {BUSYBOX} terminal sh -c '{inside}'"
    );
    let outcome = run("script", &["-qec", &inner, "/dev/null"])?.expect_status(0)?;
    ensure!(outcome.out.contains("/dev/pts/"), "{outcome:?}");
    ensure!(outcome.out.contains("33 99"), "the terminal's size: {outcome:?}");
    ensure!(outcome.out.contains("err\r"), "a terminal has one stream: {outcome:?}");
    Ok(())
}

fn environment(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let flags = ["--env", "COLOUR=blue green", "--cwd", "/tmp"];
    let outcome =
        run_once(&flags, "environment", &["sh", "-c", "echo $COLOUR; pwd; id -u"])?.expect_status(0)?;
    ensure!(outcome.out == "blue green\n/tmp\n0\n", "{outcome:?}");

    // `ctr run` of this version cannot name a user; an image can.
    const IMAGE: &str = "docker.io/library/user:uvm";
    let folder = tempfile::tempdir()?;
    let shell = std::fs::read("/bin/busybox")?;
    let config = serde_json::json!({ "User": "1000:1001" });
    let archive = oci_archive::write(folder.path(), IMAGE, &[("bin/sh", &shell)], &config)?;
    ctr(&["image", "import", &archive])?.expect_status(0)?;
    let outcome = ctr(&["run", "--rm", "--runtime", RUNTIME, IMAGE, "user", "sh", "-c", "id -u; id -g"])?;
    ctr(&["image", "rm", IMAGE])?.expect_status(0)?;
    ensure!(outcome.out == "1000\n1001\n", "{outcome:?}");
    Ok(())
}

fn read_only(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let outcome = run_once(&["--read-only"], "read-only", &["sh", "-c", "echo x > /file"])?;
    ensure!(outcome.status != 0 && outcome.err.contains("Read-only file system"), "{outcome:?}");
    run_once(&[], "read-write", &["sh", "-c", "echo x > /file && cat /file"])?.expect_status(0)?;
    Ok(())
}

fn out_of_memory(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let events = tempfile::NamedTempFile::new()?;
    let mut watcher = std::process::Command::new("ctr").arg("events").stdout(events.reopen()?).spawn()?;
    let limit = (24u32 << 20).to_string();
    // `tail` keeps all of an endless line.
    let outcome = run_once(&["--memory-limit", &limit], "hungry", &["tail", "/dev/zero"]);
    let seen = eventually("an OOM event", Duration::from_secs(20), || {
        let text = std::fs::read_to_string(events.path())?;
        Ok(text.contains("/tasks/oom").then_some(()))
    });
    watcher.kill()?;
    watcher.wait()?;
    outcome?.expect_status(137)?;
    seen
}

fn exec_and_kill(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let container =
        Detached::start(&[], "exec", &["sh", "-c", "trap 'exit 7' TERM; while :; do sleep 1; done"])?;
    let outcome =
        container.exec(&[], "e1", &["sh", "-c", "echo out; echo err >&2; exit 5"])?.expect_status(5)?;
    ensure!(outcome.out == "out\n" && outcome.err == "err\n", "{outcome:?}");
    container.exec(&[], "e2", &["/no/such/program"])?.expect_refusal("/no/such/program")?;
    ensure!(container.status()?.as_deref() == Some("RUNNING"));
    ctr(&["task", "kill", "--signal", "TERM", "exec"])?.expect_status(0)?;
    stopped(&container)?;
    let deleted = ctr(&["task", "delete", "exec"])?.expect_status(0)?;
    ensure!(deleted.err.contains("exit code 7"), "the task's own status: {deleted:?}");
    Ok(())
}

fn stopped(container: &Detached) -> Result<()> {
    eventually("the task stopped", Duration::from_secs(30), || {
        Ok((container.status()?.as_deref() == Some("STOPPED")).then_some(()))
    })
}

fn pause_and_metrics(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let container = Detached::start(&[], "paused", &["sleep", "1000"])?;
    ctr(&["task", "pause", "paused"])?.expect_status(0)?;
    ensure!(container.status()?.as_deref() == Some("PAUSED"), "{:?}", container.status());
    ctr(&["task", "resume", "paused"])?.expect_status(0)?;
    ensure!(container.status()?.as_deref() == Some("RUNNING"), "{:?}", container.status());

    let metrics = ctr(&["task", "metrics", "paused"])?.expect_status(0)?.out;
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.split_whitespace().next() == Some(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    ensure!(value("memory.usage").is_some_and(|bytes| bytes > 0), "{metrics}");
    ensure!(value("pids.current") == Some(1), "{metrics}");
    let ps = ctr(&["task", "ps", "paused"])?.expect_status(0)?.out;
    ensure!(ps.lines().count() >= 2, "{ps}");

    ctr(&["task", "kill", "--all", "--signal", "KILL", "paused"])?.expect_status(0)?;
    stopped(&container)
}

fn own_kernel(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let guest = run_once(&[], "kernel", &["uname", "-r"])?.expect_status(0)?.out;
    let node = run("uname", &["-r"])?.expect_status(0)?.out;
    ensure!(!guest.trim().is_empty() && guest != node, "guest {guest:?}, node {node:?}");
    Ok(())
}

/// Two and a half processors' worth of time need three processors.
fn processors(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let outcome = run_once(&["--cpus", "2.5"], "processors", &["nproc"])?.expect_status(0)?;
    ensure!(outcome.out == "3\n", "{outcome:?}");
    Ok(())
}

fn nothing_left(bed: &Bed) -> Result<()> {
    import_busybox(bed)?;
    let before = Ledger::take()?;
    run_once(&[], "tidy", &["true"])?.expect_status(0)?;
    before.expect_nothing_new()
}
