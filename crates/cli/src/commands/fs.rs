//! `coffer fs …`, but for the KMS

use admin_api::{
    BytePath, CreateFilesystem, Damage, Deleted, Entry, EntryKind, Exit, Export, Filesystem,
    FilesystemState, Filesystems, Import, Job, Listing, Lock, Problem, Verify, paths,
};

use super::{Context, findings_text};
use crate::files::absolute;
use crate::grammar::{FsCommand, Name};
use crate::show::{fields, table, under};

pub(super) async fn run(
    command: FsCommand,
    context: &mut Context<'_, '_>,
) -> Result<Exit, Problem> {
    match command {
        FsCommand::Create { name, encrypted: _, allow_no_kms, backing, kms_key } => {
            let backing = backing.map(|path| absolute(&path)).transpose()?.map(BytePath::from);
            let request = CreateFilesystem { name, backing, allow_no_kms, kms_key };
            let filesystem: Filesystem = context.client.post(paths::FILESYSTEMS, &request).await?;
            Ok(context.answer(&filesystem, created_text))
        }
        FsCommand::List => list(context).await,
        FsCommand::Show(Name { name }) => {
            let filesystem: Filesystem = context.client.get(&paths::filesystem(&name)).await?;
            Ok(context.answer(&filesystem, text))
        }
        FsCommand::Delete { name: Name { name }, forget } => delete(&name, forget, context).await,
        FsCommand::Lock { name: Name { name }, force } => {
            let path = paths::of_filesystem(paths::LOCK, &name);
            let filesystem: Filesystem = context.client.post(&path, &Lock { force }).await?;
            Ok(context.answer(&filesystem, |fs| format!("{} is locked\n", fs.name)))
        }
        FsCommand::Unlock(Name { name }) => {
            let path = paths::of_filesystem(paths::UNLOCK, &name);
            let filesystem: Filesystem = context.client.post(&path, &()).await?;
            Ok(context.answer(&filesystem, |fs| format!("{} is unlocked\n", fs.name)))
        }
        FsCommand::Verify { name: Name { name }, repair } => {
            let path = paths::of_filesystem(paths::VERIFY, &name);
            let job: Job = context.client.post(&path, &Verify { repair }).await?;
            context.finish(job).await
        }
        FsCommand::Rekey(Name { name }) => {
            let path = paths::of_filesystem(paths::REKEY, &name);
            let job: Job = context.client.post(&path, &()).await?;
            context.finish(job).await
        }
        FsCommand::Import { name: Name { name }, source } => {
            let path = paths::of_filesystem(paths::IMPORT, &name);
            let request = Import { source: absolute(&source)?.into() };
            let job: Job = context.client.post(&path, &request).await?;
            context.finish(job).await
        }
        FsCommand::Export { name: Name { name }, target } => {
            let path = paths::of_filesystem(paths::EXPORT, &name);
            let request = Export { target: absolute(&target)?.into() };
            let job: Job = context.client.post(&path, &request).await?;
            context.finish(job).await
        }
        FsCommand::Ls { name: Name { name }, path } => ls(&name, path.into(), context).await,
        // `ask_node` sends these to `kms`.
        FsCommand::Kms { .. } => Ok(Exit::Done),
    }
}

async fn list(context: &mut Context<'_, '_>) -> Result<Exit, Problem> {
    let mut all = Filesystems { filesystems: Vec::new(), next: None };
    loop {
        let path = paths::filesystems("", "", all.next.as_deref(), None);
        let page: Filesystems = context.client.get(&path).await?;
        all.filesystems.extend(page.filesystems);
        all.next = page.next;
        if all.next.is_none() {
            return Ok(context.answer(&all, |all| list_text(&all.filesystems)));
        }
    }
}

async fn delete(name: &str, forget: bool, context: &mut Context<'_, '_>) -> Result<Exit, Problem> {
    // Nobody is asked about what does not exist.
    let filesystem: Filesystem =
        context.client.get(&paths::filesystem(name)).await.map_err(|problem: Problem| {
            if problem.exit == Exit::State {
                Problem { title: format!("the filesystem {name} can't be deleted"), ..problem }
            } else {
                problem
            }
        })?;
    let backing = &filesystem.backing;
    let (what, consequence) = if forget {
        (
            "forgetting",
            format!("its record and the wrapped key in it go; what lies in {backing} stays"),
        )
    } else {
        (
            "deleting",
            format!("all data in {backing} and every copy of its wrapped key here are lost"),
        )
    };
    context.confirm(&format!("{what} {name}"), &consequence, name)?;
    let deleted: Deleted = context.client.delete(&paths::deletion(name, forget)).await?;
    let done = if forget { "forgotten" } else { "deleted" };
    Ok(context.answer(&deleted, |deleted| deleted_text(deleted, done)))
}

async fn ls(name: &str, path: BytePath, context: &mut Context<'_, '_>) -> Result<Exit, Problem> {
    let mut all =
        Listing { entries: Vec::new(), unreadable: Vec::new(), unreadable_omitted: 0, next: None };
    loop {
        let page: Listing =
            context.client.get(&paths::ls(name, &path, all.next.as_ref(), None)).await?;
        all.entries.extend(page.entries);
        all.unreadable.extend(page.unreadable);
        all.unreadable_omitted += page.unreadable_omitted;
        all.next = page.next;
        if all.next.is_none() {
            context.answer(&all, |all| listing_text(&all.entries));
            return whole(name, all, context);
        }
    }
}

/// Whether all names could be listed, or why not.
fn whole(name: &str, listing: Listing, context: &mut Context<'_, '_>) -> Result<Exit, Problem> {
    let Listing { unreadable, unreadable_omitted: omitted, .. } = listing;
    let (strange, unread): (Vec<_>, Vec<_>) =
        unreadable.into_iter().partition(|it| it.kind == "leftover");
    if !strange.is_empty() {
        let omitted = if unread.is_empty() { omitted } else { 0 };
        context.note(&format!("passed over:\n{}", unlisted(&strange, omitted)));
    }
    if unread.is_empty() {
        return Ok(Exit::Done);
    }
    let title = format!("some names in {name} can't be read");
    let (exit, code, cure) = if unread.iter().any(|it| it.kind == "damaged") {
        let cure = format!("see all that is damaged with coffer fs verify {name}");
        (Exit::NotAuthentic, "damaged", cure)
    } else {
        (Exit::Partly, "partly-done", "check the disk and the mount, then list it again".to_owned())
    };
    Err(Problem::new(exit, code, title, unlisted(&unread, omitted)).cure(cure))
}

fn unlisted(things: &[Damage], omitted: u64) -> String {
    let line = |thing: &Damage| {
        let what = BytePath::new(thing.what.as_str());
        format!("{}: {what}", thing.ciphertext.clone().unwrap_or_default())
    };
    let mut lines: Vec<_> = things.iter().map(line).collect();
    if omitted > 0 {
        lines.push(format!("and {omitted} more"));
    }
    lines.join("\n")
}

pub(super) fn created_text(fs: &Filesystem) -> String {
    let mut text = format!(
        "{} is made in {}; its key is wrapped by {}\n",
        fs.name,
        fs.backing,
        words::wrapped_by(&fs.wrapped_by)
    );
    if fs.exposed {
        text.push_str(
            "warning: its key is wrapped locally: whoever reads this machine's disks reads the data\n  \
             do:  set a KMS with coffer fs kms set-vault, then give the filesystem a new key with coffer fs rekey\n",
        );
    }
    text
}

fn list_text(filesystems: &[Filesystem]) -> String {
    if filesystems.is_empty() {
        return "no filesystems\n".to_owned();
    }
    let rows: Vec<_> = filesystems
        .iter()
        .map(|fs| {
            [
                fs.name.clone(),
                words::filesystem_state(fs.state).to_owned(),
                words::wrapped_by(&fs.wrapped_by),
                if fs.exposed { "yes" } else { "no" }.to_owned(),
                fs.backing.to_string(),
            ]
        })
        .collect();
    let mut text = table(["NAME", "STATE", "KEY WRAPPED BY", "EXPOSED", "BACKING"], &rows);
    for fs in filesystems {
        if let Some(problem) = &fs.problem {
            let stands = match fs.state {
                FilesystemState::Deleting => "is being deleted",
                FilesystemState::Unlocking => "is being unlocked",
                FilesystemState::Unlocked | FilesystemState::Locked => "is locked",
            };
            text.push_str(&format!("{} {stands}: {}\n", fs.name, under(&problem.detail, 7)));
            if let Some(cure) = &problem.cure {
                text.push_str(&format!("  do:  {}\n", under(cure, 7)));
            }
        }
        text.push_str(&findings_text(&fs.findings));
    }
    text
}

fn text(fs: &Filesystem) -> String {
    fields(&words::filesystem(fs)) + &findings_text(&fs.findings)
}

fn deleted_text(deleted: &Deleted, done: &str) -> String {
    let mut text = format!("{} is {done}\n", deleted.name);
    // A path in it must not look like a line of ours.
    let shown = |place: &String| BytePath::new(place.as_str());
    for place in deleted.removed.iter().map(shown) {
        text.push_str(&format!("  removed a copy of its wrapped key: {place}\n"));
    }
    if deleted.remaining.is_empty() {
        text.push_str("  no copy of its wrapped key that this node knows of is left\n");
    }
    for place in deleted.remaining.iter().map(shown) {
        text.push_str(&format!("  left, with a copy of its key that may open: {place}\n"));
    }
    text
}

fn listing_text(entries: &[Entry]) -> String {
    let width = entries.iter().map(|entry| entry.size).max().unwrap_or_default().to_string().len();
    entries
        .iter()
        .map(|entry| {
            let modified = words::moment(u64::try_from(entry.modified_at).unwrap_or_default());
            let target = entry.target.as_ref().map(|t| format!(" -> {t}")).unwrap_or_default();
            format!(
                "{}  {:>width$}  {modified}  {}{target}\n",
                permissions(entry),
                entry.size,
                entry.name
            )
        })
        .collect()
}

/// As `ls -l` shows them.
fn permissions(entry: &Entry) -> String {
    let kind = match entry.kind {
        EntryKind::File => '-',
        EntryKind::Directory => 'd',
        EntryKind::Symlink => 'l',
        EntryKind::Fifo => 'p',
        EntryKind::CharacterDevice => 'c',
        EntryKind::BlockDevice => 'b',
    };
    let bits = (0..9)
        .rev()
        .map(|bit| if entry.mode >> bit & 1 == 0 { '-' } else { ['x', 'w', 'r'][bit % 3] });
    std::iter::once(kind).chain(bits).collect()
}
