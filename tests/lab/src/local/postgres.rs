//! PostgreSQL as a plain process. It refuses to run as root: there it runs as the user `postgres`, with its data in a
//! folder that this user can reach.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{self, Layout};
use crate::local::disks;
use crate::local::parts::{Part, log_file};
use crate::machine::{is_root, packages, tools};
use crate::progress::Progress;
use crate::shell;

/// The port on 127.0.0.1.
const PORT: u16 = 15_432;
/// The administrator's connection.
pub const URL: &str = "postgres://postgres:postgres@127.0.0.1:15432/postgres";
/// The password in [`URL`]: the server listens on the loopback only.
const PASSWORD: &str = "postgres";
/// Where root keeps the data: root's own cache is closed to other users.
const ROOT_DATA: &str = "/var/lib/kvcluster-lab";
/// Where Debian keeps the programs, one folder per version.
const DEBIAN_PROGRAMS: &str = "/usr/lib/postgresql";

/// The folder with PostgreSQL's programs; installs them where the lab may.
pub fn programs(layout: &Layout, progress: &Progress) -> Result<PathBuf> {
    if let Some(folder) = installed() {
        return Ok(folder);
    }
    progress.step("install PostgreSQL", |_| {
        packages::ensure(layout, &[("postgresql", DEBIAN_PROGRAMS)])?;
        installed().context("PostgreSQL was installed, but its program `postgres` is not there")
    })
}

/// A small disk, MiB: three times the log of changes that it keeps, and what a run of the suites stores.
const DISK_MIB: u32 = 512;
/// The size of PostgreSQL's log of changes at which it makes room in it, on a small disk.
const SMALL_WAL: &str = "max_wal_size=96MB";

/// The process.
pub fn part(layout: &Layout, programs: &Path, is_small: bool) -> Part {
    let cwd = data_folder(layout);
    let port = PORT.to_string();
    let data = cwd.join("data").display().to_string();
    let program = programs.join("postgres").display().to_string();
    let server = [
        &program,
        "-D",
        &data,
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-k",
        "",
    ];
    let small: &[&str] = if is_small { &["-c", SMALL_WAL] } else { &[] };
    Part {
        name: "postgres".to_owned(),
        argv: as_postgres()
            .iter()
            .chain(&server)
            .chain(small)
            .map(|&word| word.to_owned())
            .collect(),
        env: BTreeMap::new(),
        cwd,
        log: log_file(layout, "postgres"),
        ports: vec![PORT],
        pid: None,
        started_ticks: None,
    }
}

/// Makes an empty data folder with the administrator `postgres`.
pub fn prepare(layout: &Layout, part: &Part, programs: &Path, is_small: bool) -> Result<()> {
    disks::unmount_below(&part.cwd)?;
    cache::remove(&part.cwd)?;
    if is_small {
        disks::mount(&part.cwd, DISK_MIB)?;
    }
    let password = part.cwd.join("password");
    cache::write(&password, PASSWORD)?;
    if is_root() {
        std::fs::set_permissions(&part.cwd, std::fs::Permissions::from_mode(0o755))?;
        std::os::unix::fs::chown(&part.cwd, Some(user_id("-u")?), Some(user_id("-g")?))?;
    }
    let data = part.cwd.join("data").display().to_string();
    let initdb = programs.join("initdb").display().to_string();
    let password_file = format!("--pwfile={}", password.display());
    let mut words = as_postgres().to_vec();
    words.extend([&initdb, "-D", &data, "-U", "postgres", &password_file]);
    words.extend([
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
    ]);
    let mut command = shell::command(&words);
    shell::run_logged(command.current_dir(&part.cwd), &layout.log("initdb"))
        .context("cannot make PostgreSQL's data folder")?;
    std::fs::remove_file(&password).context("cannot remove the password file")
}

/// Whether the server takes the administrator's connection.
pub fn answers(programs: &Path) -> bool {
    let words = [URL, "-qAtc", "select 1"];
    shell::succeeds(
        Command::new(programs.join("psql"))
            .args(words)
            .current_dir("/"),
    )
}

/// Removes the data.
pub fn remove_data(layout: &Layout) -> Result<()> {
    disks::unmount_below(&data_folder(layout))?;
    cache::remove(&data_folder(layout))?;
    if is_root() {
        cache::remove(Path::new(ROOT_DATA))
    } else {
        Ok(())
    }
}

fn data_folder(layout: &Layout) -> PathBuf {
    if is_root() {
        Path::new(ROOT_DATA).join("postgres")
    } else {
        layout.run("local").join("postgres")
    }
}

fn as_postgres() -> &'static [&'static str] {
    if is_root() {
        &[
            "setpriv",
            "--reuid=postgres",
            "--regid=postgres",
            "--init-groups",
            "--",
        ]
    } else {
        &[]
    }
}

fn user_id(option: &str) -> Result<u32> {
    let text = shell::output(&mut shell::command(&["id", option, "postgres"]))?;
    text.parse().context("`id` printed no number")
}

fn installed() -> Option<PathBuf> {
    let folders = std::fs::read_dir(DEBIAN_PROGRAMS)
        .into_iter()
        .flatten()
        .flatten();
    let newest = newest(folders.map(|entry| entry.path().join("bin")));
    let on_path = || Some(tools::find("postgres")?.parent()?.to_owned());
    newest
        .filter(|folder| folder.join("postgres").is_file())
        .or_else(on_path)
}

/// Of `…/<version>/bin` the one with the highest version.
fn newest(folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    folders.max_by_key(|folder| {
        let version = folder.parent().and_then(Path::file_name);
        version.and_then(|name| name.to_string_lossy().parse::<u32>().ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_used() {
        let folders = ["/p/9/bin", "/p/17/bin", "/p/15/bin", "/p/other/bin"].map(PathBuf::from);
        assert_eq!(
            newest(folders.into_iter()),
            Some(PathBuf::from("/p/17/bin"))
        );
        assert_eq!(newest(std::iter::empty()), None);
    }

    #[test]
    fn the_url_names_port_and_password() {
        assert!(URL.contains(&format!(":{PASSWORD}@127.0.0.1:{PORT}/")));
    }
}
