//! What keeps keys out of files that nobody meant to write.

use std::fs;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask,
};

/// Turns core dumps off (by limit, and by making the process undumpable, which also keeps other processes of the same
/// user from attaching to it; one that root forces all the same is to hold no memory, core(5)) and lets new files be readable by their owner alone. For the start of a node, before
/// any other thread runs: the umask belongs to the whole process.
///
/// # Errors
/// The system refused: then the node must not hold keys.
pub fn harden() -> std::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // Before the process is undumpable: afterwards this file is root's.
    fs::write("/proc/self/coredump_filter", "0")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    Ok(())
}
