//! An answer that a test holds back, so that something else happens first.

use tokio::sync::oneshot;

/// An answer that is held back until this is dropped.
#[derive(Debug)]
pub struct Late {
    reached: oneshot::Receiver<()>,
    _go_on: oneshot::Sender<()>,
}

/// Where it is held.
#[derive(Debug)]
pub struct Gate {
    reached: oneshot::Sender<()>,
    go_on: oneshot::Receiver<()>,
}

impl Late {
    /// Both ends of it.
    pub fn new() -> (Gate, Self) {
        let (at, reached) = oneshot::channel();
        let (go_on, gone_on) = oneshot::channel();
        (Gate { reached: at, go_on: gone_on }, Self { reached, _go_on: go_on })
    }

    /// Waits until the answer would go out.
    pub async fn reached(&mut self) {
        (&mut self.reached).await.unwrap();
    }
}

impl Gate {
    /// Says that it has come here, and waits to be let through.
    pub async fn pass(self) {
        let _ = self.reached.send(());
        let _ = self.go_on.await;
    }
}
