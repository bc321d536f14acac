//! What a container uses, from its control group and the pod's network interfaces.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use agent_protocol::rpc::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, MemoryData, MemoryStats, NetworkStats,
    PidsStats, StatsContainerResponse, ThrottlingData,
};
use protobuf::MessageField;

use crate::cgroup::{Cgroup, keyed};
use crate::error::{Context, Result};

/// Nanoseconds in a microsecond: cgroup v2 counts in the latter, the protocol in the former.
const NANOSECONDS: u64 = 1000;

/// Reads everything.
///
/// # Errors
/// If the group's basic files are missing. Controllers that the kernel lacks leave zeros.
pub fn read(group: &Cgroup) -> Result<StatsContainerResponse> {
    let directory = group.path();
    let cgroup = CgroupStats {
        cpu_stats: MessageField::some(cpu(&required(directory, "cpu.stat")?)),
        memory_stats: MessageField::some(memory(directory)?),
        pids_stats: MessageField::some(PidsStats {
            current: number(&optional(directory, "pids.current")),
            limit: number(&optional(directory, "pids.max")),
            ..Default::default()
        }),
        blkio_stats: MessageField::some(block_io(&optional(directory, "io.stat"))),
        ..Default::default()
    };
    Ok(StatsContainerResponse {
        cgroup_stats: MessageField::some(cgroup),
        network_stats: network(&fs::read_to_string("/proc/net/dev").unwrap_or_default()),
        ..Default::default()
    })
}

fn cpu(stat: &str) -> CpuStats {
    let value = |key| keyed(stat, key).unwrap_or(0);
    let nanoseconds = |key| value(key).saturating_mul(NANOSECONDS);
    CpuStats {
        cpu_usage: MessageField::some(CpuUsage {
            total_usage: nanoseconds("usage_usec"),
            usage_in_kernelmode: nanoseconds("system_usec"),
            usage_in_usermode: nanoseconds("user_usec"),
            ..Default::default()
        }),
        throttling_data: MessageField::some(ThrottlingData {
            periods: value("nr_periods"),
            throttled_periods: value("nr_throttled"),
            throttled_time: nanoseconds("throttled_usec"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory(directory: &Path) -> Result<MemoryStats> {
    let stats = pairs(&required(directory, "memory.stat")?);
    let data = |prefix: &str, events: &str| MemoryData {
        usage: number(&optional(directory, &format!("{prefix}.current"))),
        max_usage: number(&optional(directory, &format!("{prefix}.peak"))),
        failcnt: keyed(&optional(directory, &format!("{prefix}.events")), events).unwrap_or(0),
        limit: limit(&optional(directory, &format!("{prefix}.max"))),
        ..Default::default()
    };
    Ok(MemoryStats {
        cache: stats.get("file").copied().unwrap_or(0),
        usage: MessageField::some(data("memory", "max")),
        swap_usage: MessageField::some(data("memory.swap", "max")),
        use_hierarchy: true,
        stats,
        ..Default::default()
    })
}

/// `io.stat`: "major:minor rbytes=1 wbytes=2 rios=3 wios=4 …" per device.
fn block_io(text: &str) -> BlkioStats {
    let mut stats = BlkioStats::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let entry = |op: &str| BlkioStatsEntry {
                major,
                minor,
                op: op.to_owned(),
                value: number(value),
                ..Default::default()
            };
            match key {
                "rbytes" => stats.io_service_bytes_recursive.push(entry("Read")),
                "wbytes" => stats.io_service_bytes_recursive.push(entry("Write")),
                "rios" => stats.io_serviced_recursive.push(entry("Read")),
                "wios" => stats.io_serviced_recursive.push(entry("Write")),
                _ => {}
            }
        }
    }
    stats
}

/// `/proc/net/dev`: two header lines, then "name: 8 receive counters, 8 transmit counters".
fn network(text: &str) -> Vec<NetworkStats> {
    let interface = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_ascii_whitespace().map(number).collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = counters[..]
        else {
            return None;
        };
        let name = name.trim().to_owned();
        (name != "lo").then(|| NetworkStats {
            name,
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..Default::default()
        })
    };
    text.lines().skip(2).filter_map(interface).collect()
}

fn pairs(text: &str) -> HashMap<String, u64> {
    let pair = |line: &str| line.split_once(' ').map(|(key, value)| (key.to_owned(), number(value)));
    text.lines().filter_map(pair).collect()
}

/// A count; "max" and nothing are 0, which the protocol reads as "no limit".
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// A limit in bytes, where "max" is the largest number there is.
fn limit(text: &str) -> u64 {
    if text.trim() == "max" { u64::MAX } else { number(text) }
}

fn required(directory: &Path, file: &str) -> Result<String> {
    let path = directory.join(file);
    fs::read_to_string(&path).doing(|| format!("read {}", path.display()))
}

fn optional(directory: &Path, file: &str) -> String {
    fs::read_to_string(directory.join(file)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_becomes_a_message() {
        let directory = tempfile::tempdir().unwrap();
        let files = [
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 2\nthrottled_usec 7\n",
            ),
            ("memory.stat", "anon 4096\nfile 8192\ninactive_file 100\n"),
            ("memory.current", "12288\n"),
            ("memory.peak", "20000\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\nmax 5\noom 1\noom_kill 1\n"),
            ("pids.current", "3\n"),
            ("pids.max", "100\n"),
            ("io.stat", "253:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\ngarbage\n"),
        ];
        for (file, text) in files {
            fs::write(directory.path().join(file), text).unwrap();
        }
        let stats = read(&Cgroup::at(directory.path().to_owned())).unwrap().cgroup_stats.unwrap();
        assert_eq!(stats.cpu_stats.cpu_usage.total_usage, 30_000);
        assert_eq!(stats.cpu_stats.throttling_data.throttled_time, 7000);
        let memory = stats.memory_stats.unwrap();
        assert_eq!((memory.cache, memory.stats["inactive_file"]), (8192, 100));
        assert_eq!((memory.usage.usage, memory.usage.limit, memory.usage.failcnt), (12288, u64::MAX, 5));
        assert_eq!((stats.pids_stats.current, stats.pids_stats.limit), (3, 100));
        let written = &stats.blkio_stats.io_service_bytes_recursive[1];
        assert_eq!((written.major, written.op.as_str(), written.value), (253, "Write", 20));
    }

    #[test]
    fn a_missing_group_is_an_error() {
        assert!(read(&Cgroup::at("/nonexistent".into())).is_err());
    }

    #[test]
    fn interfaces_other_than_loopback() {
        let text = "Inter-| …\n face | …\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 9 8 7 6 0 0 0 0 5 4 3 2 0 0 0 0\n bad: 1\n";
        let interfaces = network(text);
        assert_eq!(interfaces.len(), 1);
        assert_eq!(
            (interfaces[0].name.as_str(), interfaces[0].rx_bytes, interfaces[0].tx_dropped),
            ("eth0", 9, 2)
        );
    }
}
