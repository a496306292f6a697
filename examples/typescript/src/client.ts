// A client generated from the protos: embeds, enrols, matches, reads errors.
//
// Usage: node dist/src/client.js HOST:PORT [IMAGE_FOLDER] [--ca FILE]
//
// The key, where the server wants one, is in SHIPREID_API_KEY; it is sent over TLS alone. Without a folder of images it
// only asks for the active model, several times in a row, and waits when the server says so.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual, parseArgs } from "node:util";

import { create } from "@bufbuild/protobuf";
import { type Duration } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Client, type Interceptor, type Transport, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../generated/google/rpc/error_details_pb.js";
import { type Chip, ChipSchema, Modality } from "../generated/shipreid/v1/chip_pb.js";
import { EnrollOutcome, EnrollRequestSchema, Galleries } from "../generated/shipreid/v1/galleries_pb.js";
import { Models } from "../generated/shipreid/v1/models_pb.js";
import { EmbedStreamRequestSchema, EntryFilterSchema, MatchRequestSchema, ShipReId } from "../generated/shipreid/v1/shipreid_pb.js";

const gallery = "example-typescript";

// [connect]
/** TLS where the file of an authority is given. The key goes with every call, and never over a plain connection. */
function connect(address: string, ca?: string, key?: string): Transport {
  const bearer: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${key}`);
    return next(request);
  };
  return createGrpcTransport({
    baseUrl: `${ca ? "https" : "http"}://${address}`,
    nodeOptions: ca ? { ca: readFileSync(ca) } : {},
    interceptors: ca && key ? [bearer] : [],
    // Every call has a deadline, unless it names one of its own.
    defaultTimeoutMs: 60_000,
  });
}
// [/connect]

// [error]
/** What a server says beside the status code. */
interface Refusal {
  code: Code;
  /** Stable, one of docs/reasons.md. Empty: the error is not the server's, as where nothing listens. */
  reason: string;
  /** By the path of the field at fault, what is wrong with it. */
  fields: Map<string, string>;
  /** Milliseconds after which trying again can help. */
  retryAfter?: number;
}

function readError(thrown: unknown): Refusal {
  const error = ConnectError.from(thrown);
  const violations = error.findDetails(BadRequestSchema).flatMap((detail) => detail.fieldViolations);
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  return {
    code: error.code,
    reason: error.findDetails(ErrorInfoSchema)[0]?.reason ?? "",
    fields: new Map(violations.map((violation) => [violation.field, violation.description])),
    ...(delay && { retryAfter: milliseconds(delay) }),
  };
}
// [/error]

function milliseconds(duration: Duration): number {
  return Number(duration.seconds) * 1e3 + duration.nanos / 1e6;
}

// [retry]
/** Makes a call again while the server says that this can help. */
async function retried<T>(call: () => Promise<T>): Promise<T> {
  const end = Date.now() + 120_000;
  for (let factor = 1; ; factor *= 2) {
    try {
      return await call();
    } catch (error) {
      const refusal = readError(error);
      const delay = refusal.retryAfter ?? (refusal.code === Code.Unavailable ? 250 : undefined);
      if (delay === undefined || Date.now() > end) throw error;
      console.log(`told to wait: ${refusal.reason}, ${delay} ms`);
      await sleep(Math.min(delay * factor, 10_000) * (0.5 + Math.random() / 2));
    }
  }
}
// [/retry]

async function main(): Promise<void> {
  const { positionals, values } = parseArgs({ allowPositionals: true, options: { ca: { type: "string" } } });
  const [address, images] = positionals;
  if (!address) throw new Error("usage: client.js HOST:PORT [IMAGE_FOLDER] [--ca FILE]");
  const transport = connect(address, values.ca, process.env.SHIPREID_API_KEY);
  const dimension = await asksForTheModel(createClient(Models, transport));
  if (images) {
    const service = createClient(ShipReId, transport);
    const galleries = createClient(Galleries, transport);
    const chips = readChips(images);
    await embeds(service, chips.optical, dimension);
    await enrols(galleries, chips);
    await matches(service, chips.optical);
    await readsRefusals(service, galleries);
    await streamsBothWays(service, [chips.optical, chips.sar]);
    await leavesStreams(service, chips.optical);
    await exportsAndDeletes(galleries);
  }
  console.log("ok");
}

async function asksForTheModel(models: Client<typeof Models>): Promise<number> {
  const digests = new Set<string>();
  let dimension = 0;
  for (let number = 0; number < 3; number++) {
    const { model } = await retried(() => models.getModel({}));
    digests.add(model?.digest ?? "");
    dimension = model?.dimension ?? 0;
  }
  check(digests.size, 1);
  return dimension;
}

interface Chips {
  optical: Chip;
  sar: Chip;
}

function readChips(images: string): Chips {
  // [chip]
  const optical = create(ChipSchema, {
    image: readFileSync(join(images, "0001_a_33x97_RGB.tif")),
    modality: Modality.OPTICAL,
    observation: { observedAt: { seconds: 1_772_000_000n }, latitude: 54.4, longitude: 10.2 },
  });
  // [/chip]
  const sar = create(ChipSchema, {
    image: readFileSync(join(images, "0003_c_25x110_SAR.tif")),
    modality: Modality.SAR,
  });
  return { optical, sar };
}

async function embeds(service: Client<typeof ShipReId>, chip: Chip, dimension: number): Promise<void> {
  let headers = new Headers();
  const answer = await service.embed(
    { chips: [chip] },
    { headers: { "x-request-id": "example-1" }, onHeader: (received) => void (headers = received) },
  );
  const outcome = answer.results[0]?.outcome;
  check(outcome?.case === "embedding" && outcome.value.values.length, dimension);
  check(headers.get("x-request-id"), "example-1");
  check(headers.has("x-shipreid-build"), true);
}

async function enrols(galleries: Client<typeof Galleries>, { optical, sar }: Chips): Promise<void> {
  // [enrol]
  await galleries.createGallery({ name: gallery });
  async function* sightings() {
    const labels = { port: "Kiel" };
    yield create(EnrollRequestSchema, { gallery, entryId: "a", vesselId: "anna", labels, source: { case: "chip", value: optical } });
    yield create(EnrollRequestSchema, { entryId: "b", vesselId: "berta", source: { case: "chip", value: sar } });
    const broken = create(ChipSchema, { image: Buffer.from("no image"), modality: Modality.SAR });
    yield create(EnrollRequestSchema, { entryId: "c", source: { case: "chip", value: broken } });
  }
  // An answer for each, in order; one that cannot be stored fails alone.
  const outcomes: string[] = [];
  for await (const answer of galleries.enroll(sightings())) {
    outcomes.push(answer.error ? `${answer.error.reason} ${answer.error.field}` : EnrollOutcome[answer.outcome]);
  }
  // [/enrol]
  check(outcomes, ["CREATED", "CREATED", "IMAGE_FORMAT_UNKNOWN chip.image"]);
}

async function matches(service: Client<typeof ShipReId>, chip: Chip): Promise<void> {
  // [match]
  const request = create(MatchRequestSchema, {
    gallery,
    queries: [{ queryId: "q", subject: { case: "tracklet", value: { chips: [chip] } } }],
    filter: { timeRange: { start: { seconds: 1_771_000_000n } }, excludeVesselIds: ["berta"] },
    minSimilarity: 0.5,
    withDetails: true,
  });
  const [result] = (await service.match(request)).results;
  if (!result || result.error) throw new Error(`${result?.queryId}: ${result?.error?.reason}: ${result?.error?.message}`);
  for (const candidate of result.candidates) {
    console.log(candidate.vesselId, candidate.similarity, candidate.labels, candidate.observation?.latitude);
  }
  // [/match]
  const [best] = result.candidates;
  check(result.candidates.length, 1);
  check([best?.vesselId, best?.entryId, best?.modality], ["anna", "a", Modality.OPTICAL]);
  check([best?.labels, best?.observation?.latitude, (best?.similarity ?? 0) > 0.99], [{ port: "Kiel" }, 54.4, true]);

  // Of another ship, below a minimum that no other ship reaches.
  request.filter = create(EntryFilterSchema, { excludeVesselIds: ["anna"] });
  request.minSimilarity = 1;
  const [other] = (await service.match(request)).results;
  check([other?.candidates.length, other?.matched], [0, 1n]);
  check(other?.removed.map((removed) => [removed.reason, removed.count]), [["MIN_SIMILARITY", 1n]]);
}

async function readsRefusals(service: Client<typeof ShipReId>, galleries: Client<typeof Galleries>): Promise<void> {
  const queries = [{ subject: { case: "entryId" as const, value: "a" } }];
  let found = await refused(() => service.match({ gallery: "nowhere", queries }));
  check([found.code, found.reason], [Code.NotFound, "GALLERY_NOT_FOUND"]);

  found = await refused(() => galleries.createGallery({ name: "../up" }));
  check([found.code, found.reason], [Code.InvalidArgument, "GALLERY_NAME_INVALID"]);
  check([[...found.fields.keys()], found.retryAfter], [["name"], undefined]);

  // A stream of answers is refused where it is read.
  found = await refused(() => collected(service.train({ configToml: "epochs = 5" })));
  check([found.code, found.reason, [...found.fields.keys()]], [Code.InvalidArgument, "CONFIG_MALFORMED", ["config_toml"]]);
}

async function streamsBothWays(service: Client<typeof ShipReId>, chips: Chip[]): Promise<void> {
  // [stream]
  // Each chip is sent once the chip before it is answered.
  let answered = () => {};
  async function* requests() {
    for (const [number, chip] of chips.entries()) {
      const before = new Promise<void>((resolve) => (answered = resolve));
      yield create(EmbedStreamRequestSchema, { chipId: String(number), chip });
      await before;
    }
  }
  const ids: string[] = [];
  for await (const answer of service.embedStream(requests())) {
    ids.push(answer.result?.outcome.case === "embedding" ? answer.chipId : `not ${answer.chipId}`);
    answered();
  }
  // [/stream]
  check(ids, ["0", "1"]);
}

async function leavesStreams(service: Client<typeof ShipReId>, chip: Chip): Promise<void> {
  async function* thenSilence(...chips: Chip[]) {
    for (const each of chips) yield create(EmbedStreamRequestSchema, { chip: each });
    await new Promise(() => {});
  }
  const leaving = new AbortController();
  let answers = 0;
  let found = await refused(async () => {
    for await (const _ of service.embedStream(thenSilence(chip), { signal: leaving.signal })) {
      answers++;
      leaving.abort();
    }
  });
  check([answers, found.code], [1, Code.Canceled]);

  found = await refused(() => collected(service.embedStream(thenSilence(), { timeoutMs: 200 })));
  check(found.code, Code.DeadlineExceeded);
}

async function exportsAndDeletes(galleries: Client<typeof Galleries>): Promise<void> {
  let bytes = 0;
  for await (const piece of galleries.exportGallery({ gallery, withChips: true })) bytes += piece.data.length;
  check(bytes > 1000, true);

  const entries: string[] = [];
  let pageToken = "";
  do {
    const page = await galleries.listEntries({ gallery, pageSize: 1, pageToken });
    entries.push(...page.entries.map((entry) => entry.entryId));
    pageToken = page.nextPageToken;
  } while (pageToken);
  check(entries.sort(), ["a", "b"]);
  await galleries.deleteGallery({ name: gallery });
}

async function collected<T>(answers: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const answer of answers) all.push(answer);
  return all;
}

async function refused(call: () => Promise<unknown>): Promise<Refusal> {
  let answer: unknown;
  try {
    answer = await call();
  } catch (error) {
    return readError(error);
  }
  throw new Error(`a refusal was expected, not ${JSON.stringify(answer)}`);
}

function check(found: unknown, expected: unknown): void {
  if (!isDeepStrictEqual(found, expected)) {
    throw new Error(`${JSON.stringify(expected)} was expected, not ${JSON.stringify(found)}`);
  }
}

await main();
