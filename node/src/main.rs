//! The program.

fn main() -> anyhow::Result<()> {
    kvcluster_node::program::main()
}
