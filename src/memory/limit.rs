//! How much memory there is for this process.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of the machine's memory, or fewer where a control group limits them; `None` where the system says neither.
pub fn bytes_max() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| machine_bytes(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // Without a limit there is "max" or a very large number.
    let limit = |file: PathBuf| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    machine.into_iter().chain(limit_files(&groups).into_iter().filter_map(limit)).min()
}

/// Reads `/proc/meminfo`.
fn machine_bytes(text: &str) -> Option<u64> {
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// The files with the limits of the control groups in `/proc/self/cgroup`, and of those above them.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        let group = Path::new(group.trim_start_matches('/'));
        files.extend(group.ancestors().map(|group| Path::new(root).join(group).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_machine_is_read_from_its_first_line() {
        let text = "MemTotal:        8008476 kB\nMemFree:          123456 kB\n";
        assert_eq!(machine_bytes(text), Some(8_008_476 * 1024));
        assert_eq!(machine_bytes("MemFree: 1 kB\n"), None);
        assert!(bytes_max().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn a_group_is_limited_by_those_above_it() {
        for (groups, expected) in [
            ("0::/", &["/sys/fs/cgroup/memory.max"][..]),
            (
                "0::/pod/server\n",
                &[
                    "/sys/fs/cgroup/pod/server/memory.max",
                    "/sys/fs/cgroup/pod/memory.max",
                    "/sys/fs/cgroup/memory.max",
                ][..],
            ),
            (
                "5:cpu,cpuacct:/a\n4:memory:/a\n",
                &[
                    "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                ][..],
            ),
            ("nothing", &[][..]),
        ] {
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(limit_files(groups), expected, "{groups}");
        }
    }
}
