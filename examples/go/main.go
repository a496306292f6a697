// A client generated from the protos: embeds, enrols, matches, reads errors.
//
// Usage: client [-images FOLDER] [-ca FILE] HOST:PORT
//
// The key, where the server wants one, is in SHIPREID_API_KEY; it is sent over TLS alone. Without a folder of images it
// only asks for the active model, several times in a row, and waits when the server says so.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "client/shipreid/v1"
)

const gallery = "example-go"

// [connect]

// connect uses TLS where the file of an authority is given. The key goes with every call, and never over a plain
// connection.
func connect(address, ca, key string) (*grpc.ClientConn, error) {
	if ca == "" {
		// Since gRPC 1.63: grpc.NewClient with insecure.NewCredentials().
		return grpc.Dial(address, grpc.WithInsecure())
	}
	tls, err := credentials.NewClientTLSFromFile(ca, "")
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(tls)}
	if key != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(key)))
	}
	return grpc.Dial(address, options...)
}

type bearer string

func (key bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(key)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// [/connect]

// [error]

// Refusal is what a server says beside the message of an error.
type Refusal struct {
	Code codes.Code
	// Stable, one of docs/reasons.md. Empty: the error is not the server's, as where nothing listens.
	Reason string
	// By the path of the field at fault, what is wrong with it.
	Fields map[string]string
	// After which trying again can help. 0: it cannot.
	RetryAfter time.Duration
}

func readError(err error) Refusal {
	answered := status.Convert(err)
	refusal := Refusal{Code: answered.Code(), Fields: map[string]string{}}
	for _, detail := range answered.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			refusal.Reason = detail.Reason
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				refusal.Fields[violation.Field] = violation.Description
			}
		case *errdetails.RetryInfo:
			refusal.RetryAfter = detail.RetryDelay.AsDuration()
		}
	}
	return refusal
}

// [/error]

// [retry]

// retried makes a call again while the server says that this can help.
func retried(ctx context.Context, call func() error) error {
	const longest = 10 * time.Second
	end := time.Now().Add(2 * time.Minute)
	for factor := time.Duration(1); ; factor *= 2 {
		err := call()
		if err == nil {
			return nil
		}
		refusal := readError(err)
		delay := refusal.RetryAfter
		if delay == 0 && refusal.Code == codes.Unavailable {
			delay = 250 * time.Millisecond
		}
		if delay == 0 || time.Now().After(end) {
			return err
		}
		fmt.Printf("told to wait: %s, %s\n", refusal.Reason, delay)
		if delay *= factor; delay > longest {
			delay = longest
		}
		select {
		case <-time.After(delay/2 + time.Duration(rand.Int63n(int64(delay/2)+1))):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// [/retry]

// caller has a client for each service that it calls.
type caller struct {
	ships     pb.ShipReIdClient
	galleries pb.GalleriesClient
	models    pb.ModelsClient
}

func main() {
	log.SetFlags(log.Lshortfile)
	images := flag.String("images", "", "folder of chips")
	ca := flag.String("ca", "", "authority of the server's certificate, PEM")
	flag.Parse()
	conn, err := connect(flag.Arg(0), *ca, os.Getenv("SHIPREID_API_KEY"))
	must(err)
	defer conn.Close()
	// Every call has a deadline: that of its context.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	c := caller{pb.NewShipReIdClient(conn), pb.NewGalleriesClient(conn), pb.NewModelsClient(conn)}
	dimension := c.asksForTheModel(ctx)
	if *images != "" {
		optical, sar := readChips(*images)
		c.embeds(ctx, optical, dimension)
		c.enrols(ctx, optical, sar)
		c.matches(ctx, optical)
		c.readsRefusals(ctx)
		c.streamsBothWays(ctx, optical, sar)
		c.leavesStreams(ctx, optical)
		c.exportsAndDeletes(ctx)
	}
	fmt.Println("ok")
}

func (c caller) asksForTheModel(ctx context.Context) int {
	var first *pb.Model
	for i := 0; i < 3; i++ {
		var answer *pb.GetModelResponse
		must(retried(ctx, func() (err error) {
			answer, err = c.models.GetModel(ctx, &pb.GetModelRequest{})
			return err
		}))
		if first == nil {
			first = answer.Model
		}
		expect(answer.Model.Digest, first.Digest)
	}
	return int(first.Dimension)
}

func readChips(images string) (optical, sar *pb.Chip) {
	// [chip]
	image, err := os.ReadFile(filepath.Join(images, "0001_a_33x97_RGB.tif"))
	must(err)
	optical = &pb.Chip{
		Image:    image,
		Modality: pb.Modality_MODALITY_OPTICAL,
		Observation: &pb.Observation{
			ObservedAt: &timestamppb.Timestamp{Seconds: 1_772_000_000},
			Latitude:   proto.Float64(54.4),
			Longitude:  proto.Float64(10.2),
		},
	}
	// [/chip]
	image, err = os.ReadFile(filepath.Join(images, "0003_c_25x110_SAR.tif"))
	must(err)
	return optical, &pb.Chip{Image: image, Modality: pb.Modality_MODALITY_SAR}
}

func (c caller) embeds(ctx context.Context, chip *pb.Chip, dimension int) {
	var headers metadata.MD
	named := metadata.AppendToOutgoingContext(ctx, "x-request-id", "example-1")
	answer, err := c.ships.Embed(named, &pb.EmbedRequest{Chips: []*pb.Chip{chip}}, grpc.Header(&headers))
	must(err)
	expect(len(answer.Results[0].GetEmbedding().GetValues()), dimension)
	expect(headers.Get("x-request-id"), []string{"example-1"})
	expect(len(headers.Get("x-shipreid-build")), 1)
}

func (c caller) enrols(ctx context.Context, optical, sar *pb.Chip) {
	// [enrol]
	_, err := c.galleries.CreateGallery(ctx, &pb.CreateGalleryRequest{Name: gallery})
	must(err)
	broken := &pb.Chip{Image: []byte("no image"), Modality: pb.Modality_MODALITY_SAR}
	sightings := []*pb.EnrollRequest{
		{
			Gallery: gallery, EntryId: "a", VesselId: "anna", Labels: map[string]string{"port": "Kiel"},
			Source: &pb.EnrollRequest_Chip{Chip: optical},
		},
		{EntryId: "b", VesselId: "berta", Source: &pb.EnrollRequest_Chip{Chip: sar}},
		{EntryId: "c", Source: &pb.EnrollRequest_Chip{Chip: broken}},
	}
	stream, err := c.galleries.Enroll(ctx)
	must(err)
	// Answers come while sightings are still sent: whoever sends many reads meanwhile.
	go func() {
		for _, sighting := range sightings {
			if stream.Send(sighting) != nil {
				return // Recv says why.
			}
		}
		stream.CloseSend()
	}()
	// An answer for each, in order; one that cannot be stored fails alone.
	var outcomes []string
	for {
		answer, err := stream.Recv()
		if err == io.EOF {
			break
		}
		must(err)
		if answer.Error != nil {
			outcomes = append(outcomes, answer.Error.Reason+" "+answer.Error.Field)
		} else {
			outcomes = append(outcomes, answer.Outcome.String())
		}
	}
	// [/enrol]
	created := "ENROLL_OUTCOME_CREATED"
	expect(outcomes, []string{created, created, "IMAGE_FORMAT_UNKNOWN chip.image"})
}

func (c caller) matches(ctx context.Context, chip *pb.Chip) {
	// [match]
	tracklet := &pb.Tracklet{Chips: []*pb.Chip{chip}}
	request := &pb.MatchRequest{
		Gallery: gallery,
		Queries: []*pb.MatchQuery{{QueryId: "q", Subject: &pb.MatchQuery_Tracklet{Tracklet: tracklet}}},
		Filter: &pb.EntryFilter{
			TimeRange:        &pb.TimeRange{Start: &timestamppb.Timestamp{Seconds: 1_771_000_000}},
			ExcludeVesselIds: []string{"berta"},
		},
		MinSimilarity: proto.Float64(0.5),
		WithDetails:   true,
	}
	answer, err := c.ships.Match(ctx, request)
	must(err)
	result := answer.Results[0]
	if result.Error != nil {
		log.Fatalf("%s: %s: %s", result.QueryId, result.Error.Reason, result.Error.Message)
	}
	for _, found := range result.Candidates {
		fmt.Println(found.VesselId, found.Similarity, found.Labels, found.Observation.GetLatitude())
	}
	// [/match]
	expect(len(result.Candidates), 1)
	best := result.Candidates[0]
	expect([]string{best.VesselId, best.EntryId, best.Labels["port"]}, []string{"anna", "a", "Kiel"})
	expect(best.Modality, pb.Modality_MODALITY_OPTICAL)
	expect(best.Similarity > 0.99, true)
	expect(best.Observation.GetLatitude(), 54.4)

	// Of another ship, below a minimum that no other ship reaches.
	request.Filter = &pb.EntryFilter{ExcludeVesselIds: []string{"anna"}}
	request.MinSimilarity = proto.Float64(1)
	answer, err = c.ships.Match(ctx, request)
	must(err)
	result = answer.Results[0]
	expect(len(result.Candidates), 0)
	expect(result.Matched, uint64(1))
	expect(result.Removed[0].Reason, "MIN_SIMILARITY")
	expect(result.Removed[0].Count, uint64(1))
}

func (c caller) readsRefusals(ctx context.Context) {
	queries := []*pb.MatchQuery{{Subject: &pb.MatchQuery_EntryId{EntryId: "a"}}}
	_, err := c.ships.Match(ctx, &pb.MatchRequest{Gallery: "nowhere", Queries: queries})
	found := readError(err)
	expect(found.Code, codes.NotFound)
	expect(found.Reason, "GALLERY_NOT_FOUND")

	_, err = c.galleries.CreateGallery(ctx, &pb.CreateGalleryRequest{Name: "../up"})
	found = readError(err)
	expect(found.Code, codes.InvalidArgument)
	expect(found.Reason, "GALLERY_NAME_INVALID")
	expect(len(found.Fields), 1)
	expect(found.Fields["name"] != "", true)
	expect(found.RetryAfter, time.Duration(0))

	// A stream of answers is refused where it is read.
	stream, err := c.ships.Train(ctx, &pb.TrainRequest{ConfigToml: "epochs = 5"})
	must(err)
	_, err = stream.Recv()
	found = readError(err)
	expect(found.Code, codes.InvalidArgument)
	expect(found.Reason, "CONFIG_MALFORMED")
	expect(found.Fields["config_toml"] != "", true)
}

func (c caller) streamsBothWays(ctx context.Context, chips ...*pb.Chip) {
	// [stream]
	stream, err := c.ships.EmbedStream(ctx)
	must(err)
	for number, chip := range chips {
		must(stream.Send(&pb.EmbedStreamRequest{ChipId: fmt.Sprint(number), Chip: chip}))
		answer, err := stream.Recv()
		must(err)
		expect(answer.ChipId, fmt.Sprint(number))
		expect(answer.Result.GetError().GetReason(), "")
	}
	must(stream.CloseSend())
	// [/stream]
	_, err = stream.Recv()
	expect(err, io.EOF)
}

func (c caller) leavesStreams(ctx context.Context, chip *pb.Chip) {
	leaving, leave := context.WithCancel(ctx)
	stream, err := c.ships.EmbedStream(leaving)
	must(err)
	must(stream.Send(&pb.EmbedStreamRequest{Chip: chip}))
	_, err = stream.Recv()
	must(err)
	leave()
	_, err = stream.Recv()
	expect(status.Code(err), codes.Canceled)

	brief, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	stream, err = c.ships.EmbedStream(brief)
	must(err)
	_, err = stream.Recv()
	expect(status.Code(err), codes.DeadlineExceeded)
}

func (c caller) exportsAndDeletes(ctx context.Context) {
	stream, err := c.galleries.ExportGallery(ctx, &pb.ExportGalleryRequest{Gallery: gallery, WithChips: true})
	must(err)
	bytes := 0
	for {
		piece, err := stream.Recv()
		if err == io.EOF {
			break
		}
		must(err)
		bytes += len(piece.Data)
	}
	expect(bytes > 1000, true)

	var entries []string
	listing := &pb.ListEntriesRequest{Gallery: gallery, PageSize: 1}
	for {
		page, err := c.galleries.ListEntries(ctx, listing)
		must(err)
		for _, entry := range page.Entries {
			entries = append(entries, entry.EntryId)
		}
		listing.PageToken = page.NextPageToken
		if listing.PageToken == "" {
			break
		}
	}
	sort.Strings(entries)
	expect(entries, []string{"a", "b"})
	_, err = c.galleries.DeleteGallery(ctx, &pb.DeleteGalleryRequest{Name: gallery})
	must(err)
}

func must(err error) {
	if err != nil {
		log.Output(2, fmt.Sprintf("%v %+v", err, readError(err)))
		os.Exit(1)
	}
}

func expect(found, expected interface{}) {
	if !reflect.DeepEqual(found, expected) {
		log.Output(2, fmt.Sprintf("%v was expected, not %v", expected, found))
		os.Exit(1)
	}
}
