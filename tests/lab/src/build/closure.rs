//! A program with the shared libraries that it loads, and nothing else: enough for an image.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache;
use crate::shell;

/// The folders that a merged `/usr` makes links of.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Makes an empty root with the usual links and a world-writable `/tmp`.
pub fn skeleton(target: &Path) -> Result<()> {
    for name in MERGED {
        fs::create_dir_all(target.join("usr").join(name))?;
        let link = target.join(name);
        if !link.exists() {
            symlink(format!("usr/{name}"), link)?;
        }
    }
    fs::create_dir_all(target.join("etc"))?;
    fs::create_dir_all(target.join("tmp"))?;
    fs::set_permissions(target.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    cache::write(
        &target.join("etc/passwd"),
        "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n",
    )?;
    cache::write(&target.join("etc/group"), "root:x:0:\nnonroot:x:65532:\n")?;
    cache::write(&target.join("etc/nsswitch.conf"), "hosts: files dns\n")
}

/// Copies `files` (paths inside `root`) and the libraries they load into `target`, at the same paths.
pub fn copy(root: &Path, files: &[PathBuf], target: &Path) -> Result<()> {
    for file in files {
        copy_one(root, file, target)?;
        for library in libraries(root, file)? {
            copy_one(root, &library, target)?;
        }
    }
    Ok(())
}

fn copy_one(root: &Path, file: &Path, target: &Path) -> Result<()> {
    let inside = file.strip_prefix("/").unwrap_or(file);
    let to = target.join(inside);
    if to.exists() {
        return Ok(());
    }
    fs::create_dir_all(to.parent().context("every file lies in a folder")?)?;
    let from = root.join(inside);
    fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

fn libraries(root: &Path, file: &Path) -> Result<Vec<PathBuf>> {
    let file = file.to_string_lossy();
    let root = root.to_string_lossy();
    let words: &[&str] = if root == "/" {
        &["ldd", &file]
    } else {
        &["chroot", &root, "ldd", &file]
    };
    match shell::output(&mut shell::command(words)) {
        Ok(text) => Ok(parse_ldd(&text)),
        Err(error) if error.to_string().contains("not a dynamic executable") => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot list the libraries of {file}")),
    }
}

/// Lines are `name => /path (0x…)`, `/path (0x…)`, or `linux-vdso.so.1 (0x…)`, which is no file.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let right = line.split("=>").last()?.split_whitespace().next()?;
        right.starts_with('/').then(|| PathBuf::from(right))
    };
    text.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffe)\n\
                    \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\
                    \tlibgone.so => not found\n\tstatically linked\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libm.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ]
        .map(PathBuf::from);
        assert_eq!(parse_ldd(text), expected);
    }

    #[test]
    fn a_program_comes_with_what_it_loads() {
        let target = std::env::temp_dir().join(format!("kvcluster-closure-{}", std::process::id()));
        skeleton(&target).expect("an empty root can be made");
        let program = std::env::current_exe().expect("the test has a file");
        copy(Path::new("/"), std::slice::from_ref(&program), &target).expect("it can be copied");
        let loads = libraries(Path::new("/"), &program).expect("ldd works");
        assert!(!loads.is_empty(), "a test program loads the C library");
        for file in loads {
            let inside = file.strip_prefix("/").expect("it is absolute");
            assert!(target.join(inside).is_file(), "{}", file.display());
        }
        cache::remove(&target).expect("the test's own folder can be removed");
    }
}
