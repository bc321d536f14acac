//! Statistics: from what the agent or the host reports to containerd's `io.containerd.cgroups.v2.Metrics`.

use std::fs;
use std::io;

use agent_protocol::rpc::agent::{CgroupStats, StatsContainerResponse};
use containerd_shim::protos::cgroups_v2::metrics::{
    CPUStat, MemoryEvents, MemoryStat, Metrics, NetworkStat, PidsStat,
};

const NS_PER_US: u64 = 1000;

/// A container's statistics, as the guest's cgroup v2 counts them.
#[must_use]
pub fn from_agent(stats: StatsContainerResponse) -> Metrics {
    let cgroup = stats.cgroup_stats.unwrap_or_default();
    let network = stats.network_stats.into_iter().map(|network| NetworkStat {
        name: network.name,
        rx_bytes: network.rx_bytes,
        rx_packets: network.rx_packets,
        rx_errors: network.rx_errors,
        rx_dropped: network.rx_dropped,
        tx_bytes: network.tx_bytes,
        tx_packets: network.tx_packets,
        tx_errors: network.tx_errors,
        tx_dropped: network.tx_dropped,
        ..NetworkStat::default()
    });
    Metrics {
        network: network.collect(),
        cpu: Some(cpu(&cgroup)).into(),
        memory: Some(memory(&cgroup)).into(),
        memory_events: Some(memory_events(&cgroup)).into(),
        pids: Some(PidsStat {
            current: cgroup.pids_stats.current,
            limit: cgroup.pids_stats.limit,
            ..PidsStat::default()
        })
        .into(),
        ..Metrics::default()
    }
}

/// The agent's times are in nanoseconds, containerd's in microseconds.
fn cpu(cgroup: &CgroupStats) -> CPUStat {
    let usage = &cgroup.cpu_stats.cpu_usage;
    let throttling = &cgroup.cpu_stats.throttling_data;
    CPUStat {
        usage_usec: usage.total_usage / NS_PER_US,
        user_usec: usage.usage_in_usermode / NS_PER_US,
        system_usec: usage.usage_in_kernelmode / NS_PER_US,
        nr_periods: throttling.periods,
        nr_throttled: throttling.throttled_periods,
        throttled_usec: throttling.throttled_time / NS_PER_US,
        ..CPUStat::default()
    }
}

/// The agent's map has the keys of the kernel's `memory.stat`.
fn memory(cgroup: &CgroupStats) -> MemoryStat {
    let stats = &cgroup.memory_stats;
    let value = |key: &str| stats.stats.get(key).copied().unwrap_or(0);
    MemoryStat {
        usage: stats.usage.usage,
        usage_limit: stats.usage.limit,
        max_usage: stats.usage.max_usage,
        swap_usage: stats.swap_usage.usage,
        swap_limit: stats.swap_usage.limit,
        anon: value("anon"),
        file: value("file"),
        kernel_stack: value("kernel_stack"),
        slab: value("slab"),
        sock: value("sock"),
        shmem: value("shmem"),
        file_mapped: value("file_mapped"),
        file_dirty: value("file_dirty"),
        file_writeback: value("file_writeback"),
        inactive_anon: value("inactive_anon"),
        active_anon: value("active_anon"),
        inactive_file: value("inactive_file"),
        active_file: value("active_file"),
        unevictable: value("unevictable"),
        slab_reclaimable: value("slab_reclaimable"),
        slab_unreclaimable: value("slab_unreclaimable"),
        pgfault: value("pgfault"),
        pgmajfault: value("pgmajfault"),
        ..MemoryStat::default()
    }
}

fn memory_events(cgroup: &CgroupStats) -> MemoryEvents {
    MemoryEvents { max: cgroup.memory_stats.usage.failcnt, ..MemoryEvents::default() }
}

/// A pod's own statistics: what its machine's process uses on the host, guest memory included.
///
/// # Errors
/// When the process has gone, or the kernel's files are not as proc(5) describes them.
pub fn of_process(pid: u32) -> io::Result<Metrics> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let (user, system) = cpu_ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
    let tick_us = 1_000_000 / rustix::param::clock_ticks_per_second().max(1);
    let resident = status_kib(&status, "VmRSS:").ok_or(io::ErrorKind::InvalidData)? * 1024;
    let anon = status_kib(&status, "RssAnon:").unwrap_or(0) * 1024;
    let shmem = status_kib(&status, "RssShmem:").unwrap_or(0) * 1024;
    let threads = status_kib(&status, "Threads:").unwrap_or(0);
    Ok(Metrics {
        cpu: Some(CPUStat {
            usage_usec: (user + system) * tick_us,
            user_usec: user * tick_us,
            system_usec: system * tick_us,
            ..CPUStat::default()
        })
        .into(),
        memory: Some(MemoryStat { usage: resident, anon, shmem, ..MemoryStat::default() }).into(),
        pids: Some(PidsStat { current: threads, ..PidsStat::default() }).into(),
        ..Metrics::default()
    })
}

/// Fields 14 and 15 (`utime`, `stime`) of `/proc/<pid>/stat`; field 2, the name, may contain anything.
fn cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The number in a line of `/proc/<pid>/status`.
fn status_kib(status: &str, key: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(key))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_fields() {
        let mut stats = StatsContainerResponse::default();
        let cgroup = stats.cgroup_stats.mut_or_insert_default();
        let cpu = cgroup.cpu_stats.mut_or_insert_default();
        cpu.cpu_usage.mut_or_insert_default().total_usage = 5_000_999;
        let memory = cgroup.memory_stats.mut_or_insert_default();
        memory.usage.mut_or_insert_default().usage = 4096;
        memory.stats.insert("inactive_file".into(), 512);
        cgroup.pids_stats.mut_or_insert_default().current = 3;
        let metrics = from_agent(stats);
        assert_eq!(metrics.cpu.usage_usec, 5000);
        assert_eq!((metrics.memory.usage, metrics.memory.inactive_file), (4096, 512));
        assert_eq!(metrics.pids.current, 3);
    }

    #[test]
    fn an_empty_answer_is_all_zero() {
        let metrics = from_agent(StatsContainerResponse::default());
        assert_eq!((metrics.cpu.usage_usec, metrics.memory.usage), (0, 0));
    }

    #[test]
    fn names_with_parentheses_do_not_shift_fields() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 111 222 0 0";
        assert_eq!(cpu_ticks(stat), Some((111, 222)));
        assert_eq!(cpu_ticks("7 (a"), None);
    }

    #[test]
    fn this_process_has_statistics() {
        let metrics = of_process(std::process::id()).unwrap();
        assert!(metrics.memory.usage > 0 && metrics.pids.current > 0);
    }
}
