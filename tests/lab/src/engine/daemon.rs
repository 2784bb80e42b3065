//! An engine of the lab's own, where none runs: data in the cache, everything else below one folder of `/run`, because a
//! socket's path may be no longer than 107 bytes. What it changes on the machine is noted before and undone after.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cache::{self, Layout};
use crate::engine::{capabilities, rules};
use crate::machine::{is_root, tools};
use crate::progress::Progress;
use crate::shell;

/// Sockets, pid, notes and runtime state.
const FOLDER: &str = "/run/kvcluster-lab";
/// How long the engine may take to answer after its start.
const START_LIMIT: Duration = Duration::from_mins(1);
/// How long it may take to stop: it gives containers 15 s and a few more of its own.
const STOP_LIMIT: Duration = Duration::from_secs(45);
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Where every engine looks for plug-ins; it makes the folder.
const PLUGINS: &str = "/run/docker/plugins";

/// What the machine looked like before.
#[derive(Debug, Serialize, Deserialize)]
struct Before {
    ip_forward: String,
    forward_policy: String,
    had_plugins: bool,
}

/// The address of the lab's own engine, whether it runs or not.
pub fn address() -> String {
    format!("unix://{FOLDER}/docker.sock")
}

/// Installs an engine if there is none.
pub fn ensure_installed(layout: &Layout, progress: &Progress) -> Result<()> {
    if tools::find("dockerd").is_some() && tools::find("runc").is_some() {
        return super::install(layout);
    }
    progress.step("install a container engine", |_| super::install(layout))
}

/// Starts the engine and waits until it answers.
pub fn start(layout: &Layout) -> Result<()> {
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder).with_context(|| format!("cannot create {FOLDER}"))?;
    note_before()?;
    // One that died left its pid, which may be another process's by now, or a zombie's.
    let _ = fs::remove_file(pid_file());
    let log_path = layout.log("dockerd");
    let log = shell::open_log(&log_path)?;
    let mut command = shell::command(&["dockerd", "--bridge", "none", "-H", &address()]);
    command.arg("--data-root").arg(layout.root().join("docker"));
    command.arg("--exec-root").arg(folder.join("exec"));
    command.arg("--pidfile").arg(pid_file());
    if let Some(script) = capabilities::wrapper()? {
        let wrapper = folder.join("runc");
        cache::write(&wrapper, script)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        let runtime = format!("lab={}", wrapper.display());
        command.args(["--add-runtime", &runtime, "--default-runtime", "lab"]);
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("cannot start dockerd")?;
    let answer = shell::wait_for("an answer of the container engine", START_LIMIT, || {
        if !is_alive(child.id()) {
            bail!("the container engine stopped");
        }
        Ok(answers().then_some(()))
    });
    answer.with_context(|| {
        let end = shell::tail(&log_path);
        format!(
            "the container engine does not start; log {}:\n{end}",
            log_path.display()
        )
    })
}

/// Notes what the machine looks like, once: after an engine that died it looks like the engine left it.
fn note_before() -> Result<()> {
    if notes().exists() {
        return Ok(());
    }
    let saved = shell::output(&mut shell::command(&["iptables-save"]))?;
    let before = Before {
        ip_forward: fs::read_to_string(FORWARDING)?.trim().to_owned(),
        forward_policy: rules::forward_policy(&saved).to_owned(),
        had_plugins: Path::new(PLUGINS).exists(),
    };
    cache::write(&notes(), serde_json::to_string(&before)?)
}

/// Whether the lab's own engine answers.
pub fn answers() -> bool {
    let address = address();
    let words = ["docker", "-H", &address, "version"];
    shell::succeeds(&mut shell::command(&words))
}

/// Whether the lab has an engine of its own to stop.
pub fn is_started() -> bool {
    is_root() && notes().exists()
}

/// Stops the engine and undoes what it changed.
pub fn stop(layout: &Layout) -> Result<()> {
    let Ok(text) = fs::read(notes()) else {
        return Ok(());
    };
    let before: Before = serde_json::from_slice(&text).context("the engine's notes are damaged")?;
    let bridges = bridges()?;
    let pid = fs::read_to_string(pid_file())
        .ok()
        .and_then(|text| text.trim().parse().ok());
    if let Some(pid) = pid.filter(|pid| is_alive(*pid)) {
        shell::output(&mut shell::command(&["kill", &pid.to_string()]))?;
        shell::wait_for("the end of the container engine", STOP_LIMIT, || {
            Ok((!is_alive(pid)).then_some(()))
        })?;
    }
    for bridge in &bridges {
        // The engine may have taken it away itself.
        shell::succeeds(&mut shell::command(&["ip", "link", "delete", bridge]));
    }
    clean_rules(&before, &bridges)?;
    cache::write(Path::new(FORWARDING), &before.ip_forward)?;
    unmount_below(&[layout.root().join("docker"), PathBuf::from(FOLDER)])?;
    remove_control_groups();
    if !before.had_plugins {
        // Empty folders that every engine makes; they stay if somebody put something in.
        let _ = fs::remove_dir(PLUGINS);
        let _ = Path::new(PLUGINS).parent().map(fs::remove_dir);
    }
    cache::remove(Path::new(FOLDER))
}

fn clean_rules(before: &Before, bridges: &[String]) -> Result<()> {
    for family in ["iptables", "ip6tables"] {
        let saved = shell::output(&mut shell::command(&[format!("{family}-save")]))?;
        if let Some(text) = rules::without_engine(&saved, bridges, &before.forward_policy) {
            shell::output_of_input(&mut shell::command(&[format!("{family}-restore")]), &text)?;
        }
    }
    Ok(())
}

/// Bridges of networks that the lab's engine made: `br-` and the network's id.
fn bridges() -> Result<Vec<String>> {
    let text = shell::output(&mut shell::command(&[
        "ip", "-o", "link", "show", "type", "bridge",
    ]))?;
    let name = |line: &str| line.split(": ").nth(1).map(str::to_owned);
    Ok(text
        .lines()
        .filter_map(name)
        .filter(|name| name.starts_with("br-"))
        .collect())
}

fn unmount_below(folders: &[PathBuf]) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let ours: Vec<&str> = points
        .filter(|point| {
            folders
                .iter()
                .any(|folder| Path::new(point).starts_with(folder))
        })
        .collect();
    for point in ours.iter().rev() {
        shell::output(&mut shell::command(&["umount", "--lazy", point]))?;
    }
    Ok(())
}

/// Empty control groups named `docker`; those that still hold a process stay, as they are not the lab's.
fn remove_control_groups() {
    let script =
        "find /sys/fs/cgroup -depth -type d -path '*/docker*' -exec rmdir {} + 2>/dev/null";
    shell::succeeds(&mut shell::command(&["sh", "-c", script]));
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.starts_with('Z'));
    state == Some(false)
}

fn pid_file() -> PathBuf {
    Path::new(FOLDER).join("docker.pid")
}

fn notes() -> PathBuf {
    Path::new(FOLDER).join("before.json")
}
