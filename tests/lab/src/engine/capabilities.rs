//! Capabilities that this machine lacks. Where one is missing, every privileged container fails to start, unless its
//! runtime is told not to ask for it.

use anyhow::{Context, Result};

/// Names of the kernel's capabilities by number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const WRAPPER: &str = include_str!("../../recipes/runc-wrapper.sh");

/// The runtime wrapper this machine needs, if it needs one.
pub fn wrapper() -> Result<Option<String>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")?;
    let last = last.trim().parse().context("cap_last_cap is no number")?;
    let bounding = bounding_set(&status).context("/proc/self/status has no CapBnd")?;
    let missing = missing(bounding, last);
    Ok((!missing.is_empty()).then(|| wrapper_for(&missing)))
}

fn wrapper_for(missing: &[String]) -> String {
    let list = missing
        .iter()
        .map(|name| format!("\"{name}\""))
        .collect::<Vec<_>>()
        .join(", ");
    WRAPPER.replace("@MISSING@", &format!("[{list}]"))
}

fn bounding_set(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing(bounding: u64, last: usize) -> Vec<String> {
    let known = NAMES.iter().enumerate().take(last + 1);
    known
        .filter(|(number, _)| bounding & (1 << number) == 0)
        .map(|(_, name)| format!("CAP_{name}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_bounding_set_lacks_is_named() {
        let set = bounding_set("Name:\tx\nCapBnd:\t000001fffeffffff\nCapAmb:\t0\n");
        assert_eq!(missing(set.expect("it is there"), 40), ["CAP_SYS_RESOURCE"]);
        assert!(missing(0x1ff_ffff_ffff, 40).is_empty());
    }

    #[test]
    fn a_capability_the_kernel_does_not_know_is_not_missing() {
        assert!(missing(0x3f_ffff_ffff, 37).is_empty());
    }

    #[test]
    fn the_wrapper_names_what_to_drop() {
        let script = wrapper_for(&["CAP_A".to_owned(), "CAP_B".to_owned()]);
        assert!(script.contains(r#"["CAP_A", "CAP_B"] | index($name)"#));
        assert!(!script.contains('@') || script.contains("\"$@\""));
    }
}
