//! The program that runs has none of the mistakes that the tests are tested with.

#[test]
fn the_program_cannot_be_made_to_do_harm() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_kvcluster-operator")).expect("the program");
    let mark = kvcluster_operator::seeded::MARK.as_bytes();
    // That the mark would be found is checked where the mistakes are made.
    assert!(!program.windows(mark.len()).any(|bytes| bytes == mark));
}
