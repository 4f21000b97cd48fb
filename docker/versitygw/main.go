// VersityGW on a folder, with three things that its own command cannot do: the root keys come from files, so that no environment
// holds them; what was acknowledged is on the disk; and each delete marker has its own date (docs/adr/0036).
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/oklog/ulid/v2"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
	"github.com/versity/versitygw/s3response"
	"golang.org/x/sys/unix"
)

const data = "/data"

type store struct {
	*posix.Posix
	folder *os.File
}

// onDisk writes the file system to the disk, because VersityGW itself calls no fsync, before a write is acknowledged.
func onDisk[Result any](s store, result Result, err error) (Result, error) {
	if err == nil {
		err = unix.Syncfs(int(s.folder.Fd()))
	}
	return result, err
}

func (s store) PutObject(ctx context.Context, input s3response.PutObjectInput) (s3response.PutObjectOutput, error) {
	result, err := s.Posix.PutObject(ctx, input)
	return onDisk(s, result, err)
}

func (s store) CopyObject(ctx context.Context, input s3response.CopyObjectInput) (s3response.CopyObjectOutput, error) {
	result, err := s.Posix.CopyObject(ctx, input)
	return onDisk(s, result, err)
}

func (s store) CompleteMultipartUpload(
	ctx context.Context, input *s3.CompleteMultipartUploadInput,
) (s3response.CompleteMultipartUploadResult, string, error) {
	result, version, err := s.Posix.CompleteMultipartUpload(ctx, input)
	result, err = onDisk(s, result, err)
	return result, version, err
}

func (s store) DeleteObject(ctx context.Context, input *s3.DeleteObjectInput) (*s3.DeleteObjectOutput, error) {
	result, err := s.Posix.DeleteObject(ctx, input)
	return onDisk(s, result, err)
}

func (s store) DeleteObjects(ctx context.Context, input *s3.DeleteObjectsInput) (s3response.DeleteResult, error) {
	result, err := s.Posix.DeleteObjects(ctx, input)
	return onDisk(s, result, err)
}

// ListObjectVersions gives each delete marker its own time, in milliseconds. VersityGW gives all markers of an object the time of
// the last, in nanoseconds, which S3 clients do not parse.
func (s store) ListObjectVersions(ctx context.Context, input *s3.ListObjectVersionsInput) (s3response.ListVersionsResult, error) {
	result, err := s.Posix.ListObjectVersions(ctx, input)
	for i, marker := range result.DeleteMarkers {
		if id, invalid := ulid.ParseStrict(*marker.VersionId); invalid == nil {
			time := ulid.Time(id.Time()).UTC()
			result.DeleteMarkers[i].LastModified = &time
		}
	}
	return result, err
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	buckets, versions, users := filepath.Join(data, "buckets"), filepath.Join(data, "versions"), filepath.Join(data, "users")
	for _, folder := range []string{buckets, versions, users} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return err
		}
	}
	access, err := secret("MINIO_ROOT_USER")
	if err != nil {
		return err
	}
	key, err := secret("MINIO_ROOT_PASSWORD")
	if err != nil {
		return err
	}
	opts := posix.PosixOpts{VersioningDir: versions, Concurrency: 1000, CopyObjectThreshold: 5 << 30}
	opts.SetNewDirPerm(0o700)
	opts.SetNewFilePerm(0o600)
	files, err := posix.New(buckets, meta.XattrMeta{}, opts)
	if err != nil {
		return err
	}
	folder, err := os.Open(data)
	if err != nil {
		return err
	}
	return embedgw.RunVersityGW(ctx, store{files, folder}, &embedgw.Config{
		RootUserAccess:    access,
		RootUserSecret:    key,
		Region:            "us-east-1",
		Ports:             []string{":9000"},
		MaxConnections:    10_000,
		MaxRequests:       1_000,
		MultipartMaxParts: 10_000,
		IAMDir:            users,
		IAMCacheDisable:   true, // a user that is removed or gets another key is so at once
		DisableACLs:       true,
		KeepAlive:         true,
		Quiet:             true,
		HealthPath:        "/minio/health/live",
		CORSAllowOrigin:   "https://nobody.invalid",
		Version:           "v1.8.0",
	})
}

// secret reads the file that docker/take-secrets made of a variable.
func secret(name string) (string, error) {
	content, err := os.ReadFile(os.Getenv(name + "_FILE"))
	return strings.TrimSpace(string(content)), err
}
