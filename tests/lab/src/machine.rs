//! What this machine has and lacks, and the sentence that says so.

pub mod packages;
pub mod tools;

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Whether the lab runs as root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Refuses when one of the ports on 127.0.0.1 is taken: `(port, what it is for)`.
pub fn check_ports(wanted: &[(u16, String)]) -> Result<()> {
    let taken =
        |port: u16| TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).is_err();
    port_verdict(wanted, taken)
}

fn port_verdict(wanted: &[(u16, String)], taken: impl Fn(u16) -> bool) -> Result<()> {
    match wanted.iter().find(|(port, _)| taken(*port)) {
        Some((port, purpose)) => bail!(
            "port {port} on 127.0.0.1, wanted for {purpose}, is taken by another program: \
             stop it (`ss -ltnp sport = :{port}` names it) and try again"
        ),
        None => Ok(()),
    }
}

/// Refuses when the file system of `path` has less than `needed_bytes` free.
pub fn check_disk(path: &Path, needed_bytes: u64) -> Result<()> {
    let existing = path
        .ancestors()
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("/"));
    let words = ["df", "--output=avail", "-B1", &existing.to_string_lossy()];
    let text = shell::output(&mut shell::command(&words))?;
    let free = text
        .lines()
        .last()
        .unwrap_or_default()
        .trim()
        .parse::<u64>();
    disk_verdict(existing, free.context("df gave no number")?, needed_bytes)
}

fn disk_verdict(path: &Path, free_bytes: u64, needed_bytes: u64) -> Result<()> {
    const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / GIB);
    if free_bytes < needed_bytes {
        bail!(
            "only {} are free on the disk of {}, and {} are needed: free some space, or set \
             XDG_CACHE_HOME to a folder on a larger disk",
            gib(free_bytes),
            path.display(),
            gib(needed_bytes)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_purpose() {
        let wanted = [
            (8080, "the store".to_owned()),
            (6443, "Kubernetes".to_owned()),
        ];
        assert!(port_verdict(&wanted, |_| false).is_ok());
        let error = port_verdict(&wanted, |port| port == 6443).expect_err("6443 is taken");
        assert!(
            error
                .to_string()
                .starts_with("port 6443 on 127.0.0.1, wanted for Kubernetes")
        );
    }

    #[test]
    fn a_port_that_listens_counts_as_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
        let port = listener.local_addr().expect("it is bound").port();
        assert!(check_ports(&[(port, "a test".to_owned())]).is_err());
    }

    #[test]
    fn a_full_disk_is_refused_before_it_is_full() {
        let gib = 1 << 30;
        assert!(disk_verdict(Path::new("/x"), 12 * gib, 12 * gib).is_ok());
        let error = disk_verdict(Path::new("/x"), 3 * gib, 12 * gib).expect_err("3 < 12");
        assert!(
            error
                .to_string()
                .contains("only 3.0 GiB are free on the disk of /x")
        );
        assert!(check_disk(Path::new("/no/such/folder"), u64::MAX).is_err());
    }
}
