//! The program: reads the configuration, chooses the parts, wires them.
//!
//! What it does is elsewhere: the command line in [`cli`], the node in [`daemon`]. Here it is decided that keys are kept
//! in sled, wrapped by Vault or locally, and copied to the headers of backing directories.

mod config;
mod dev_vault;
mod parts;
mod policy;
mod recover;
mod rehearse;
mod serve;
mod store;

use std::io::{self, BufReader};
use std::process::ExitCode;
use tikv_jemallocator::Jemalloc;

use admin_api::{Exit, Problem};
use cli::{Console, LocalCommand, Outcome, Output};
use zeroizing_alloc::ZeroAlloc;

/// Memory is wiped when it is given back. Keys wipe themselves; this is for what passes through buffers of other people's
/// libraries: tokens, what Vault decrypted, the content of files. jemalloc keeps less of what was free than the C library does, which
/// has a place for each of many threads (docs/benchmarks.md); how it is set stands in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<Jemalloc> = ZeroAlloc(Jemalloc);

fn main() -> ExitCode {
    // The handles themselves and not their locks: a node's log goes to stderr from other threads.
    let (mut stdin, mut stdout, mut stderr) =
        (BufReader::new(io::stdin()), io::stdout(), io::stderr());
    let mut console = Console::new(&mut stdin, &mut stdout, &mut stderr).on_terminal();
    let exit = match cli::run(std::env::args_os(), &mut console) {
        Outcome::Exit(exit) => exit,
        Outcome::Local(command, output) => {
            run(command, &mut console, output).unwrap_or_else(|problem| {
                console.problem(&problem, output);
                problem.exit
            })
        }
    };
    ExitCode::from(console.end(exit).code())
}

fn run(command: LocalCommand, console: &mut Console<'_>, output: Output) -> Result<Exit, Problem> {
    match command {
        LocalCommand::Serve(arguments) => serve::run(arguments),
        LocalCommand::Recover(arguments) => recover::run(arguments, console, output),
        LocalCommand::DevVault(arguments) => dev_vault::run(arguments, console, output),
        LocalCommand::RehearseStore(arguments) => rehearse::run(&arguments, console),
        LocalCommand::Policy(arguments) => policy::run(&arguments, console, output),
    }
}

/// The most threads for what blocks: 192 of them at most for places that may not answer (`daemon`'s disks). As many as it may have a busy
/// runtime makes, for it doesn't wait until one is free.
const BLOCKING_THREADS: usize = 256;

/// A runtime with few threads: what takes long runs on threads of its own.
fn runtime() -> Result<tokio::runtime::Runtime, Problem> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).max_blocking_threads(BLOCKING_THREADS).enable_all();
    builder.build().map_err(|e| {
        Problem::new(Exit::Failed, "runtime", "no thread can be started", e.to_string())
            .cure("raise the limits on processes and memory")
    })
}

/// Completes when the process is asked to end, from this call on, also by a terminal that goes away; asked a second time, it ends at once.
/// Is called within the runtime.
fn asked_to_end() -> impl Future<Output = ()> + Send {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let signals = kinds.map(signal);
    async move {
        let [Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)] = signals else {
            // Then the signals end the process by themselves, as they do without a handler.
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(i32::from(Exit::Failed.code()));
        });
    }
}
