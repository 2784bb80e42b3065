//! Small disks: file systems in memory, of a fixed size, for the data of a broker or of PostgreSQL, so that a test can fill
//! one without taking the machine's.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::machine::is_root;
use crate::shell;

/// What such a file system is called among the machine's mounts.
const NAME: &str = "kvcluster-lab";
/// The file that takes the room.
const BALLAST: &str = "ballast";
/// Bytes that are written at once, and where these do not fit: the last ones go by pages.
const PIECES: [usize; 2] = [1 << 20, 4_096];
const MOUNTS: &str = "/proc/self/mounts";

/// Makes `folder` a file system of that size, empty.
pub fn mount(folder: &Path, mib: u32) -> Result<()> {
    ensure!(
        is_root(),
        "small disks are file systems of their own: only root can mount them"
    );
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let options = format!("size={mib}m,mode=755");
    let folder = folder.display().to_string();
    let words = ["mount", "-t", "tmpfs", "-o", &options, NAME, &folder];
    shell::output(&mut shell::command(&words)).map(drop)
}

/// Takes away those at or below `folder`, with all that is in them.
pub fn unmount_below(folder: &Path) -> Result<()> {
    let text = fs::read_to_string(MOUNTS).unwrap_or_default();
    // The newest first: one may stand in another.
    for mounted in ours(&text).iter().rev() {
        if mounted.starts_with(folder) {
            let folder = mounted.display().to_string();
            // Lazily: what looked after a process may end a moment after it, and still stands in its folder.
            shell::output(&mut shell::command(&["umount", "--lazy", &folder]))?;
        }
    }
    Ok(())
}

/// Takes all the room that is left; how many bytes that were.
pub fn fill(folder: &Path) -> Result<u64> {
    let text = fs::read_to_string(MOUNTS).unwrap_or_default();
    ensure!(
        ours(&text).iter().any(|mounted| mounted == folder),
        "{} is no disk of its own: `cargo lab down`, then `cargo lab local --small-disks`",
        folder.display()
    );
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(folder.join(BALLAST))?;
    let mut taken = 0;
    for piece in PIECES {
        let zeros = vec![0; piece];
        loop {
            match file.write(&zeros) {
                Ok(0) => break,
                Ok(count) => taken += count as u64,
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("cannot write the ballast"),
            }
        }
    }
    Ok(taken)
}

/// Gives the room back.
pub fn make_room(folder: &Path) -> Result<()> {
    match fs::remove_file(folder.join(BALLAST)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context("cannot remove the ballast")
        }
        _ => Ok(()),
    }
}

/// Where the lab's own file systems are mounted, in the order in which they were.
fn ours(mounts: &str) -> Vec<PathBuf> {
    let place = |line: &str| {
        let mut words = line.split(' ');
        let is_ours = words.next() == Some(NAME);
        words.next().filter(|_| is_ours).map(PathBuf::from)
    };
    mounts.lines().filter_map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_labs_own_file_systems_are_taken_away() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n\
                      kvcluster-lab /x/run/local/kafka-0 tmpfs rw 0 0\n";
        assert_eq!(ours(mounts), [PathBuf::from("/x/run/local/kafka-0")]);
    }

    #[test]
    fn what_is_no_small_disk_is_not_filled() {
        let folder = std::env::temp_dir();
        let refused = fill(&folder).expect_err("it is the machine's own");
        assert!(refused.to_string().contains("--small-disks"));
        assert!(!folder.join(BALLAST).exists());
    }
}
