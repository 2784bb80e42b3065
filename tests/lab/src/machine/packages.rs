//! Debian packages: installs what is missing where the lab may, names it where it may not.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cache::Layout;
use crate::machine::is_root;
use crate::{cache, shell};

/// Keeps Debian's PostgreSQL package from making and starting a cluster of its own.
const CREATECLUSTER_CONF: &str = "/etc/postgresql-common/createcluster.conf";

/// Installs those packages whose proof file is missing: `(package, a file that it brings)`.
pub fn ensure(layout: &Layout, wanted: &[(&str, &str)]) -> Result<()> {
    let missing = missing(wanted, |file| Path::new(file).exists());
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !is_root() {
        bail!(
            "these packages are missing, and only root can install them: run `sudo apt-get install {names}`"
        );
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "these programs are missing, and this system has no apt-get: install {names} by its own means"
        );
    }
    if missing.contains(&"postgresql") && !Path::new(CREATECLUSTER_CONF).exists() {
        cache::write(
            Path::new(CREATECLUSTER_CONF),
            "create_main_cluster = false\n",
        )?;
    }
    let log = layout.log("apt");
    if install(&missing, &log).is_err() {
        shell::run_logged(&mut shell::command(&["apt-get", "-q", "update"]), &log)
            .context("cannot refresh the package lists")?;
        install(&missing, &log).with_context(|| format!("cannot install {names}"))?;
    }
    Ok(())
}

fn install(packages: &[&str], log: &Path) -> Result<()> {
    let mut command =
        shell::command(&["apt-get", "-q", "-y", "install", "--no-install-recommends"]);
    command
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    // Without an init system nothing may be started by a package; with one, nothing of ours should be.
    command.env("RUNLEVEL", "1");
    shell::run_logged(&mut command, log)
}

fn missing<'a>(wanted: &[(&'a str, &str)], exists: impl Fn(&str) -> bool) -> Vec<&'a str> {
    wanted
        .iter()
        .filter(|(_, file)| !exists(file))
        .map(|(name, _)| *name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lacks_its_file_is_installed() {
        let wanted = [("jq", "/usr/bin/jq"), ("runc", "/usr/sbin/runc")];
        assert_eq!(missing(&wanted, |file| file == "/usr/bin/jq"), ["runc"]);
        assert!(missing(&wanted, |_| true).is_empty());
    }
}
