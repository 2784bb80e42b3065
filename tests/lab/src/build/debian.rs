//! Root file systems out of Debian packages, for machines that can pull no image. Needs root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{self, Layout};
use crate::machine::packages;
use crate::progress::{Progress, Step};
use crate::shell;

/// The release whose packages the images are made of: it has PostgreSQL 15 and Java 17.
const RELEASE: &str = "bookworm";

/// Starts no service while packages are configured.
const NO_SERVICES: &str = "#!/bin/sh\nexit 101\n";

/// A minimal Debian, made once; the others start as copies of it.
pub fn base(layout: &Layout, progress: &Progress) -> Result<PathBuf> {
    let done = layout.artifact("debian", RELEASE);
    if !done.is_dir() {
        progress.step(&format!("make a minimal Debian {RELEASE}"), |_| {
            packages::ensure(layout, &[("debootstrap", "/usr/sbin/debootstrap")])?;
            layout.artifact_or("debian", RELEASE, |folder| {
                bootstrap(layout, &folder.join("root"))
            })
        })?;
    }
    Ok(done.join("root"))
}

/// Makes `root` a copy of the base with more packages.
pub fn with_packages(
    layout: &Layout,
    step: &Step,
    base: &Path,
    root: &Path,
    names: &[&str],
) -> Result<()> {
    let log = layout.log("debian");
    step.detail("copy the minimal Debian");
    let words = [
        "cp",
        "-a",
        "--reflink=auto",
        &base.to_string_lossy(),
        &root.to_string_lossy(),
    ];
    shell::run_logged(&mut shell::command(&words), &log)?;
    step.detail("install packages");
    let script = "apt-get -q -y install --no-install-recommends \"$@\" && apt-get clean";
    inside(root, &[&["sh", "-c", script, "sh"], names].concat(), &log)?;
    for leftover in [
        "var/lib/apt/lists",
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
    ] {
        cache::remove(&root.join(leftover))?;
    }
    for file in ["etc/resolv.conf", "usr/sbin/policy-rc.d"] {
        fs::remove_file(root.join(file)).with_context(|| format!("cannot remove {file}"))?;
    }
    Ok(())
}

fn bootstrap(layout: &Layout, root: &Path) -> Result<()> {
    let log = layout.log("debian");
    let target = root.display().to_string();
    let mut words = vec![
        "unshare",
        "--mount",
        "debootstrap",
        "--variant=minbase",
        RELEASE,
        &target,
    ];
    let mirror = own_mirror();
    words.extend(mirror.as_deref());
    shell::run_logged(&mut shell::command(&words), &log).context("debootstrap failed")?;
    fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))?;
    let policy = root.join("usr/sbin/policy-rc.d");
    cache::write(&policy, NO_SERVICES)?;
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))?;
    // What no container reads: a tenth of each image.
    let excluded = "path-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n";
    cache::write(&root.join("etc/dpkg/dpkg.cfg.d/lab"), excluded)?;
    inside(root, &["apt-get", "-q", "update"], &log)
}

/// Runs a command inside `root`, with `/proc` there as some packages' scripts need it. The mount ends with the command.
fn inside(root: &Path, words: &[&str], log: &Path) -> Result<()> {
    let script = "mount -t proc proc \"$0/proc\" && exec chroot \"$0\" \"$@\"";
    let root = root.to_string_lossy();
    let mut command = shell::command(&["unshare", "--mount", "sh", "-c", script, &root]);
    command
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8");
    shell::run_logged(&mut command, log)
}

/// Where this machine, if it is a Debian, gets its packages from; else debootstrap knows a mirror.
fn own_mirror() -> Option<String> {
    let is_debian = |line: &str| line == "ID=debian";
    fs::read_to_string("/etc/os-release")
        .ok()?
        .lines()
        .find(|line| is_debian(line))?;
    let words = [
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ];
    let text = shell::output(&mut shell::command(&words)).ok()?;
    text.lines().next().map(str::to_owned)
}
