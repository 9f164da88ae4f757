//! The server without HTTP: who may do what, and who does it.

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;

use crate::{
    answer::{Outcome, Refusal},
    clock::Clock,
    event::Event,
    policy::Acl,
    request::{Operation, Request},
    state::{Saved, State},
    sys,
    token::Caller,
};

pub(crate) struct Core {
    state: Mutex<State>,
    saved: Option<Mutex<Saved>>,
    clock: Clock,
}

impl Core {
    /// `set_up` may change a state before it is first served.
    pub(crate) fn open(
        state_file: Option<PathBuf>,
        set_up: impl FnOnce(&mut State, u64) -> Result<(), Refusal>,
    ) -> std::io::Result<Self> {
        let clock = Clock::default();
        let (mut state, mut saved) = match state_file {
            None => (State::default(), None),
            Some(path) => {
                let (saved, state) = Saved::open(path)?;
                (state.unwrap_or_default(), Some(saved))
            }
        };
        set_up(&mut state, clock.now())
            .map_err(|refusal| std::io::Error::other(refusal.render().1.to_string()))?;
        if let Some(saved) = &mut saved {
            saved.save(&state)?;
        }
        Ok(Self { state: Mutex::new(state), saved: saved.map(Mutex::new), clock })
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn is_root(&self, token: Option<&str>) -> bool {
        let state = self.state();
        token.and_then(|id| state.tokens.get(id)).is_some_and(|token| token.is_root())
    }

    /// Answers a request: the status, and the JSON body if there is one.
    pub(crate) fn handle(&self, request: Request) -> (u16, Option<Value>) {
        let mut state = self.state();
        let outcome = serve(&mut state, request, self.clock.now());
        match self.save(&state).and(outcome) {
            Ok(answer) => answer.render(),
            Err(refusal) => {
                let (status, body) = refusal.render();
                (status, Some(body))
            }
        }
    }

    /// Lets something happen, whatever the policies and the seal.
    pub(crate) fn happen(&self, event: &Event) -> Result<(), Refusal> {
        let mut state = self.state();
        event.happen(&mut state, &self.clock)?;
        self.save(&state)
    }

    fn save(&self, state: &State) -> Result<(), Refusal> {
        let Some(saved) = &self.saved else { return Ok(()) };
        let written = saved.lock().unwrap_or_else(PoisonError::into_inner).save(state);
        written.map_err(|e| Refusal::internal(&format!("the state file could not be written: {e}")))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(state: &mut State, mut request: Request, now: u64) -> Outcome {
    let path = request.path.clone();
    let segments: Vec<_> = path.split('/').collect();
    if let Some(outcome) = sys::handle_without_token(state, &segments, &request, now) {
        return outcome;
    }
    if state.is_sealed() {
        return Err(Refusal::sealed());
    }
    state.tokens.sweep(now);
    if let Some((app_role, ["login"])) = state.app_roles.find(&segments) {
        return app_role.login(&request, &mut state.tokens, &state.policies, now);
    }

    let Some(id) = request.token.take() else { return Err(Refusal::no_token()) };
    state.tokens.use_once(&id);
    let outcome = serve_token(state, &id, &segments, request, now);
    state.tokens.remove_spent(&id);
    outcome
}

fn serve_token(
    state: &mut State,
    id: &str,
    segments: &[&str],
    mut request: Request,
    now: u64,
) -> Outcome {
    let path = request.path.clone();
    let token = state.tokens.get(id).ok_or_else(Refusal::bad_token)?;
    if request.operation == Operation::Update && state.exists(segments) == Some(false) {
        request.operation = Operation::Create;
    }
    let is_root = token.is_root();
    let acl = Acl::new(token.policies().iter().filter_map(|name| state.policies.get(name)));
    let is_sudo = is_root || acl.capabilities(&path).allow_sudo();
    let is_allowed = is_root || acl.allows(request.operation, &path);
    if !is_allowed || (sys::needs_sudo(segments) && !is_sudo) {
        return Err(Refusal::denied());
    }

    match segments {
        ["sys", path @ ..] => Ok(sys::handle(state, id, path, &request)?.of_mount("system")),
        ["auth", "token", path @ ..] => {
            let caller = Caller { token: id, is_sudo, policies: &state.policies, now };
            Ok(state.tokens.handle(&caller, path, &request)?.of_mount("token"))
        }
        _ => match (state.app_roles.find(segments), state.mounts.find(segments)) {
            (Some((app_role, path)), _) => {
                Ok(app_role.handle(path, &request, now)?.of_mount("approle"))
            }
            (None, Some((transit, path))) => {
                Ok(transit.handle(now, path, &request)?.of_mount("transit"))
            }
            (None, None) => Err(Refusal::new(
                404,
                format!("no handler for route {path:?}. route entry not found."),
            )),
        },
    }
}
