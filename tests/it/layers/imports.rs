//! Which file imports names from which, interpreted like the compiler: grouped `use`, paths in code,
//! re-exported names. Test-only code is ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree, Visibility};

/// Files that consist only of tests.
const TEST_FILES: &[&str] = &["cases", "faults", "fixture", "golden", "jpeg", "oracle", "tests"];

type ModulePath = Vec<String>;

/// All of `src`.
pub struct Imports {
    files: BTreeMap<ModulePath, File>,
}

/// The names in one file.
#[derive(Default)]
struct File {
    /// As written, with the name that `use` binds.
    paths: Vec<ModulePath>,
    /// Aliases that the file defines.
    handed_on: BTreeMap<String, ModulePath>,
}

impl Imports {
    pub fn read() -> Self {
        let mut files = BTreeMap::new();
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut vec![], &mut files);
        Self { files }
    }

    /// For each top-level module, the other modules that its files name.
    pub fn between_modules(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (path, file) in &self.files {
            let Some(module) = path.first() else { continue };
            let below = arrows.entry(module.clone()).or_default();
            let named = file.paths.iter().filter_map(|written| self.absolute(path, written));
            let named = named.filter_map(|named| named.first().cloned());
            below.extend(
                named.filter(|named| named != module && self.files.contains_key([named.clone()].as_slice())),
            );
        }
        arrows
    }

    /// Top-level modules that name a library.
    pub fn modules_that_name(&self, library: &str) -> BTreeSet<String> {
        let names =
            |file: &File| file.paths.iter().any(|path| path.first().is_some_and(|first| first == library));
        let files = self.files.iter().filter(|(_, file)| names(file));
        files.filter_map(|(path, _)| path.first().cloned()).collect()
    }

    /// Import cycles between files. A file and the files in its own folder count as one unit, in which a
    /// child may import from its parent, as in Rust.
    pub fn circles(&self) -> Vec<Vec<String>> {
        let arrows: BTreeMap<&ModulePath, BTreeSet<&ModulePath>> =
            self.files.keys().map(|path| (path, self.below(path))).collect();
        let reach: BTreeMap<_, _> = arrows.keys().map(|path| (*path, reachable(&arrows, path))).collect();
        let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
        for (path, reached) in &reach {
            if reached.contains(path) {
                let together = reached.iter().filter(|other| reach[*other].contains(path));
                circles.insert(together.map(|path| path.join("::")).collect());
            }
        }
        circles.into_iter().collect()
    }

    /// The files that define what the file at `path` names.
    fn below(&self, path: &ModulePath) -> BTreeSet<&ModulePath> {
        let written = self.files[path].paths.iter();
        let defined = written.filter_map(|written| self.definer(path, written, 0));
        defined.filter(|other| !path.starts_with(other)).collect()
    }

    /// The file that defines `written` as used in the file at `from`.
    fn definer(&self, from: &[String], written: &[String], depth: usize) -> Option<&ModulePath> {
        let named = self.absolute(from, written)?;
        let length = (0..=named.len()).rev().find(|length| self.files.contains_key(&named[..*length]))?;
        let (module, file) = self.files.get_key_value(&named[..length])?;
        let handed_on = named.get(length).and_then(|item| file.handed_on.get(item));
        match handed_on.filter(|_| depth < 8) {
            Some(target) => self.definer(module, target, depth + 1).or(Some(module)),
            None => Some(module),
        }
    }

    /// The path from the root of the crate; `None` for names from libraries and from the file itself.
    fn absolute(&self, from: &[String], written: &[String]) -> Option<ModulePath> {
        let (first, rest) = written.split_first()?;
        let mut path = match first.as_str() {
            "crate" | "shipreid" => vec![],
            "self" | "super" => from.to_vec(),
            child if self.files.contains_key(&[from, &[child.to_owned()]].concat()) => {
                [from, &[child.to_owned()]].concat()
            }
            _ => return None,
        };
        if first == "super" {
            path.pop();
        }
        for segment in rest {
            match segment.as_str() {
                "super" => drop(path.pop()),
                "self" => {}
                _ => path.push(segment.clone()),
            }
        }
        Some(path)
    }
}

fn reachable<'a>(
    arrows: &BTreeMap<&'a ModulePath, BTreeSet<&'a ModulePath>>,
    from: &'a ModulePath,
) -> BTreeSet<&'a ModulePath> {
    let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(path) = next.pop() {
        next.extend(arrows[path].iter().filter(|below| reached.insert(**below)));
    }
    reached
}

fn collect(folder: &Path, at: &mut ModulePath, files: &mut BTreeMap<ModulePath, File>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if TEST_FILES.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            at.push(name);
            collect(&path, at, files);
            at.pop();
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !["lib", "main"].contains(&name.as_str())
        {
            let own = if name == "mod" { vec![] } else { vec![name] };
            files.insert([at.as_slice(), &own].concat(), read(&path));
        }
    }
}

fn read(path: &Path) -> File {
    let parsed = syn::parse_file(&fs::read_to_string(path).unwrap());
    let mut file = File::default();
    file.visit_file(&parsed.unwrap_or_else(|error| panic!("{}: {error}", path.display())));
    file
}

impl File {
    fn add_use(&mut self, tree: &UseTree, before: &[String], is_public: bool) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_use(&path.tree, &with(&path.ident), is_public),
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.add_use(tree, before, is_public))
            }
            UseTree::Name(name) => self.add_name(with(&name.ident), name.ident.to_string(), is_public),
            UseTree::Rename(name) => self.add_name(with(&name.ident), name.rename.to_string(), is_public),
            UseTree::Glob(_) => self.paths.push(before.to_vec()),
        }
    }

    fn add_name(&mut self, path: ModulePath, name: String, is_public: bool) {
        if is_public {
            self.handed_on.insert(name, path.clone());
        }
        self.paths.push(path);
    }

    /// Paths among the tokens of a macro, whose grammar is unknown.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: ModulePath = vec![];
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.paths.push(std::mem::take(&mut path));
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Group(group) => self.add_tokens(group.stream()),
                TokenTree::Punct(_) | TokenTree::Literal(_) => self.paths.push(std::mem::take(&mut path)),
            }
        }
        self.paths.push(path);
        self.paths.retain(|path| path.len() > 1);
    }
}

impl Visit<'_> for File {
    fn visit_item(&mut self, item: &Item) {
        if !attributes(item).iter().any(is_for_tests) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &syn::ImplItemFn) {
        if !function.attrs.iter().any(is_for_tests) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        self.add_use(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_path(&mut self, path: &syn::Path) {
        if path.segments.len() > 1 {
            self.paths.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, mac: &syn::Macro) {
        self.visit_path(&mac.path);
        self.add_tokens(mac.tokens.clone());
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether it is compiled for tests only.
fn is_for_tests(attribute: &Attribute) -> bool {
    let syn::Meta::List(list) = &attribute.meta else { return false };
    list.path.is_ident("cfg") && list.tokens.to_string() == "test"
}
