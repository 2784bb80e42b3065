//! Where the lab keeps things: `${XDG_CACHE_HOME:-~/.cache}/kvcluster`.
//!
//! ```text
//! <cache>/<name>-<key>/   what was built; the key is a version or a hash of the inputs; whole or absent
//! <cache>/docker/         data of an engine that the lab runs itself
//! <cache>/locks/          what a command is at work on
//! <cache>/logs/           one log per step
//! <cache>/run/            what runs now; `down` removes it
//! ```

use std::fs::{self, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The lock on the plain processes.
pub const LOCAL: &str = "local";
/// The lock on the cluster and its engine.
pub const KIND: &str = "kind-cluster";

/// Every path that the lab uses.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    workspace: PathBuf,
}

impl Layout {
    /// From `XDG_CACHE_HOME` or `HOME`, and the workspace that cargo runs the lab in.
    pub fn from_environment() -> Result<Self> {
        let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
            (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
            (_, Some(home)) if !home.is_empty() => PathBuf::from(home).join(".cache"),
            _ => bail!("neither XDG_CACHE_HOME nor HOME is set: set HOME to a writable directory"),
        };
        // Cargo names the member that it runs; the suites run the lab too, and then it is another member.
        let running = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let member = running
            .filter(|member| member.ends_with("tests/lab"))
            .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        let workspace = member
            .ancestors()
            .nth(2)
            .context("the lab lies in tests/lab")?
            .to_owned();
        Ok(Self {
            root: base.join("kvcluster"),
            workspace,
        })
    }

    /// A layout below two given folders.
    pub fn new(root: PathBuf, workspace: PathBuf) -> Self {
        Self { root, workspace }
    }

    /// The cache itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file or folder of the repository.
    pub fn source(&self, path: &str) -> PathBuf {
        self.workspace.join(path)
    }

    /// A file or folder of what runs now.
    pub fn run(&self, path: &str) -> PathBuf {
        self.root.join("run").join(path)
    }

    /// The log of a step.
    pub fn log(&self, step: &str) -> PathBuf {
        self.root.join("logs").join(format!("{step}.log"))
    }

    /// The folder of one built thing, whether it is there or not.
    pub fn artifact(&self, name: &str, key: &str) -> PathBuf {
        self.root.join(format!("{name}-{key}"))
    }

    /// The folder of one built thing; `make` fills it if it is not there. It appears whole or not at all.
    pub fn artifact_or(
        &self,
        name: &str,
        key: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let _lock = self.lock(name)?;
        let done = self.artifact(name, key);
        if done.is_dir() {
            return Ok(done);
        }
        let partial = self.root.join(format!("{name}-{key}.partial"));
        remove(&partial)?;
        fs::create_dir_all(&partial)
            .with_context(|| format!("cannot create {}", partial.display()))?;
        make(&partial)?;
        fs::rename(&partial, &done)
            .with_context(|| format!("cannot move {} in place", done.display()))?;
        Ok(done)
    }

    /// Holds the lock on something while the value lives: two commands never change the same at once.
    pub fn lock(&self, what: &str) -> Result<fs::File> {
        let folder = self.root.join("locks");
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let file = fs::File::create(folder.join(what))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                eprintln!("another `cargo lab` command is at work on {what}: waiting for its end");
            }
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the cache"),
        }
        file.lock().context("cannot lock the cache")?;
        Ok(file)
    }
}

/// Writes a file, with its folder.
pub fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))
}

/// Removes a folder with all in it; one that is absent is fine.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A short stable key of some inputs (FNV-1a, 64 bits; a clash needs two recipes of one name).
pub fn key_of(inputs: &[&str]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for input in inputs {
        for byte in input.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_stable_and_tell_inputs_apart() {
        assert_eq!(key_of(&[]), "cbf29ce484222325");
        assert_eq!(key_of(&["a"]), key_of(&["a"]));
        assert_ne!(key_of(&["ab", "c"]), key_of(&["a", "bc"]));
    }

    #[test]
    fn an_artifact_is_whole_or_absent() {
        let root = std::env::temp_dir().join(format!("kvcluster-lab-test-{}", std::process::id()));
        let layout = Layout::new(root.clone(), PathBuf::new());
        let failed = layout.artifact_or("thing", "1", |partial| {
            fs::write(partial.join("half"), "x")?;
            bail!("broke off")
        });
        assert!(failed.is_err() && !layout.artifact("thing", "1").exists());
        let made = layout.artifact_or("thing", "1", |partial| {
            assert!(
                !partial.join("half").exists(),
                "the half of the failed try is gone"
            );
            Ok(fs::write(partial.join("whole"), "x")?)
        });
        let made = made.expect("the second try succeeds");
        assert!(made.join("whole").is_file());
        let again = layout.artifact_or("thing", "1", |_| bail!("it must not be made twice"));
        assert_eq!(again.expect("it is there"), made);
        remove(&root).expect("the test's own folder can be removed");
    }
}
