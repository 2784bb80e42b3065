//! The node's program with one deliberate mistake, for suites that must notice it. Built with the feature `seeded-bugs` only.

use anyhow::{Context as _, bail};
use kvcluster_node::program;
use kvcluster_node::seeded::{self, BUG_VARIABLE};

fn main() -> anyhow::Result<()> {
    let name = std::env::var(BUG_VARIABLE).context(BUG_VARIABLE)?;
    let mut known = seeded::ALL
        .into_iter()
        .chain(seeded::EDGES)
        .chain(seeded::STORAGE)
        .chain(seeded::RETRIES)
        .chain(seeded::ASSIGNMENTS);
    let Some(bug) = known.find(|bug| format!("{bug:?}") == name) else {
        bail!("{BUG_VARIABLE}: there is no mistake {name:?}");
    };
    seeded::set(Some(bug));
    program::main()
}
