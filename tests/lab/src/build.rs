//! What the lab makes itself, each thing once, into the cache or the engine.

pub mod closure;
pub mod debian;
pub mod go;
pub mod kafka;
pub mod node_image;
pub mod own;
pub mod service_images;

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::{self, Layout};

/// An empty folder to put an image together in; [`scrap`] removes it.
fn workshop(layout: &Layout, name: &str) -> Result<PathBuf> {
    let folder = layout.root().join("workshop").join(name);
    cache::remove(&folder)?;
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Removes a workshop.
fn scrap(layout: &Layout, name: &str) -> Result<()> {
    cache::remove(&layout.root().join("workshop").join(name))
}
