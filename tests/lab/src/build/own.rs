//! The store's own programs and their images: each program with the libraries it loads, and nothing else. The libraries
//! come from this machine, as the program was linked against them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::build::{closure, scrap, workshop};
use crate::cache::{Layout, key_of};
use crate::engine::Engine;
use crate::engine::images::Settings;
use crate::machine::tools::{Tool, require};
use crate::progress::Progress;
use crate::shell;

/// The operator's program.
pub const OPERATOR: &str = "kvcluster-operator";
/// The store node's program.
pub const NODE: &str = "kvcluster-node";
/// The operator's image.
pub const OPERATOR_TAG: &str = "kvcluster/operator:dev";
/// The store node's image.
pub const NODE_TAG: &str = "kvcluster/node:dev";

/// Roots of trust, where this machine has them.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const USER: &str = "65532:65532";

/// Builds operator and node, and hands back the folder that holds both.
pub fn programs(layout: &Layout, progress: &Progress) -> Result<PathBuf> {
    require(&[Tool::Cargo])?;
    progress.step("build operator and node", |_| {
        // The whole workspace, and one small test with the programs, as every suite does it: a choice of packages, or
        // programs without tests, would choose other features of what they share (tokio's `test-util`, for one), and
        // compile the heavy crates once more.
        let words = [
            "cargo",
            "build",
            "--locked",
            "--workspace",
            "--bins",
            "--test",
            "charts",
        ];
        let mut command = shell::command(&words);
        shell::run_logged(command.current_dir(layout.source("")), &layout.log("cargo"))
            .context("operator and node do not build")
    })?;
    let words = ["cargo", "metadata", "--no-deps", "--format-version", "1"];
    let text = shell::output(shell::command(&words).current_dir(layout.source("")))?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let target = metadata["target_directory"]
        .as_str()
        .context("cargo names its target directory")?;
    Ok(Path::new(target).join("debug"))
}

/// Makes the images of operator and node.
pub fn images(
    layout: &Layout,
    progress: &Progress,
    engine: &Engine,
    programs: &Path,
) -> Result<()> {
    for (program, tag) in [(OPERATOR, OPERATOR_TAG), (NODE, NODE_TAG)] {
        let file = programs.join(program);
        let key = file_key(&file)?;
        if !engine.has_built(tag, &key) {
            progress.step(&format!("make the image {tag}"), |_| {
                image(layout, engine, &file, tag, &key)
            })?;
        }
    }
    Ok(())
}

fn image(layout: &Layout, engine: &Engine, file: &Path, tag: &str, key: &str) -> Result<()> {
    let name = file
        .file_name()
        .context("a program has a name")?
        .to_string_lossy()
        .into_owned();
    let root = workshop(layout, &name)?;
    closure::skeleton(&root)?;
    closure::copy(Path::new("/"), &[file.to_owned()], &root)?;
    let inside = root.join(
        file.strip_prefix("/")
            .context("cargo names absolute paths")?,
    );
    let program = root.join("usr/bin").join(&name);
    fs::rename(&inside, &program)?;
    remove_empty(&root, &inside)?;
    if Path::new(CERTIFICATES).exists() {
        closure::copy(Path::new("/"), &[PathBuf::from(CERTIFICATES)], &root)?;
    }
    let entrypoint = [format!("/usr/bin/{name}")];
    let entrypoint: Vec<&str> = entrypoint.iter().map(String::as_str).collect();
    let settings = Settings {
        entrypoint: &entrypoint,
        user: USER,
        ..Settings::default()
    };
    engine.import(&root, tag, key, &settings)?;
    scrap(layout, &name)
}

/// Removes the folders above `inside` that are empty now.
fn remove_empty(root: &Path, inside: &Path) -> Result<()> {
    for folder in inside
        .ancestors()
        .skip(1)
        .take_while(|folder| *folder != root)
    {
        if fs::read_dir(folder)?.next().is_some() {
            break;
        }
        fs::remove_dir(folder)?;
    }
    Ok(())
}

/// What changes when the program does: its size and the time of its last build.
fn file_key(file: &Path) -> Result<String> {
    let Ok(metadata) = fs::metadata(file) else {
        bail!("cargo built no {}", file.display());
    };
    let changed = metadata.modified()?.duration_since(std::time::UNIX_EPOCH)?;
    Ok(key_of(&[
        &metadata.len().to_string(),
        &changed.as_nanos().to_string(),
        "1",
    ]))
}
